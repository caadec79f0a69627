//! Whether a tunnel carries real connections: a request for each name that leads to it goes out from the host, and has to
//! come back to the Traefik of the same host.

use postern_proto::event::{RunState, StepEnd};

use super::conditions::{Checked, Condition};
use super::login::Wanted;
use crate::cli::Context;
use crate::cli::asked::{Answer, ask};
use crate::cli::clean;
use crate::cli::error::CliError;
use crate::cli::site::domains;
use crate::client::{Client, HostInfo};
use crate::profile::{Assigned, about};

/// The variable that only a profile with a tunnel has, those with the names that lead to it, and who logs in.
const TUNNEL: &str = "tunnel_token";
const HOSTNAMES: &str = "hostnames";
const SSH_HOSTNAME: &str = "ssh_hostname";
const ADMIN: &str = "admin";
/// Names that are asked.
const MOST: usize = 5;
/// For all of it: 20 s a request, 10 s until it is in the log.
const LIMIT_S: u64 = 180;
/// The most that is kept of what the script says, bytes.
const SAID: usize = 2000;

/// Run on the host, with a nonce and the names. The path is in Traefik's access log when the request was for this host;
/// a name that leads to one of the host's own addresses proves nothing.
const SCRIPT: &str = r#"
nonce=$1; shift
# Of the containers themselves: `docker service logs` takes minutes where a site is busy.
logged() {
    for id in $(docker ps -q --filter label=com.docker.swarm.service.name=traefik); do
        docker logs --since 2m "$id" 2>&1
    done
}
own=$(ip -o addr show | awk '{ sub("/.*", "", $4); print $4 }')
number=0
for name; do
    number=$((number + 1)); path=/.well-known/postern-$nonce-$number
    said=$(curl -sS -o /dev/null --max-time 20 -w '%{remote_ip} %{http_code}' "https://$name$path" 2>&1) || {
        echo "$name: ${said%%
*}"; exit 1
    }
    for address in $own; do
        [ "$address" != "${said%% *}" ] || { echo "$name: it leads to this host itself ($address)"; exit 1; }
    done
    seen=
    for try in 1 2 3 4 5 6 7 8 9 10; do
        logged | grep -qF -- "$path" && { seen=yes; break; }
        sleep 1
    done
    [ -n "$seen" ] || { echo "$name: answered with ${said##* }, and Traefik of this host was not asked"; exit 1; }
    echo "$name"
done
"#;

/// The value of a variable of the profile that brings the tunnel; `None` where nothing that is assigned does.
fn value(assigned: &[Assigned], host: &HostInfo, variable: &str) -> Option<String> {
    assigned.iter().find_map(|assigned| {
        let about = about(&assigned.bundle);
        about.variables.iter().find(|(name, _)| name == TUNNEL)?;
        let default = about.variables.into_iter().find(|(name, _)| name == variable);
        let given = assigned.vars.get(variable).or_else(|| host.vars.get(variable)).cloned();
        Some(given.or(default.and_then(|(_, default)| default)).unwrap_or_default())
    })
}

/// Who is to log in through the tunnel; `None` where no name for that is given.
pub(super) fn login(assigned: &[Assigned], host: &HostInfo) -> Option<Wanted> {
    let name = value(assigned, host, SSH_HOSTNAME)?.trim().to_owned();
    let user = value(assigned, host, ADMIN).unwrap_or_default();
    (!name.is_empty()).then_some(Wanted { user, name })
}

/// What has to be asked; `None` where nothing that is assigned brings a tunnel.
pub(super) fn names(assigned: &[Assigned], host: &HostInfo) -> Option<Vec<String>> {
    let given = value(assigned, host, HOSTNAMES)?;
    let given: Vec<String> =
        given.split([' ', ',']).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let names = if given.is_empty() { domains(assigned) } else { given };
    Some(names.into_iter().take(MOST).collect())
}

/// Asks for each of them.
pub(super) async fn check(
    context: &Context,
    client: &mut Client,
    host: &HostInfo,
    names: &[String],
) -> Result<Checked, CliError> {
    if names.is_empty() {
        return Ok(Checked::new(
            Condition::Tunnel,
            false,
            "no name is known that leads to it: add a site, or apply the profile with --var hostnames=NAME",
        ));
    }
    let nonce = postern_proto::ids::RunId::generate().to_string();
    let mut argv = ["sh", "-c", SCRIPT, "sh", &nonce].map(str::to_owned).to_vec();
    argv.extend(names.iter().cloned());
    let answer = ask(context, client, host, argv, LIMIT_S, SAID).await?;
    Ok(judge(names, answer))
}

fn judge(names: &[String], answer: Option<Answer>) -> Checked {
    let no = |why: &str| Checked::new(Condition::Tunnel, false, clean::line(why));
    let Some(answer) = answer else { return no("interrupted") };
    match (answer.run.state, &answer.end) {
        (RunState::Ok, Some(StepEnd::Exit(0))) => Checked::new(
            Condition::Tunnel,
            true,
            format!("a request came through it for {}", names.join(", ")),
        ),
        _ => match answer.said.lines().rfind(|line| !line.trim().is_empty()) {
            Some(last) => no(last),
            None => no(&answer.why),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::apply::tests::host;
    use crate::profile::Bundle;

    fn assigned(name: &str, text: &str, hostnames: Option<&str>) -> Assigned {
        let vars = hostnames.map(|names| (HOSTNAMES.to_owned(), names.to_owned()));
        let bundle = Bundle::new(&format!("{name}.yaml"), text.as_bytes());
        Assigned { name: name.to_owned(), bundle, vars: vars.into_iter().collect() }
    }

    #[test]
    fn the_names_that_lead_to_a_tunnel() {
        let tunnel =
            "name: tunnel\nvars: {tunnel_token: t, hostnames: ''}\nresources:\n  - package: {name: curl}\n";
        let site = "name: site-a\nvars: {site_domain: a.example, site_image: x, site_port: 80, site_dns: '', \
                    site_replicas: 1, site_env: ''}\nresources:\n  - package: {name: curl}\n";
        let base = "name: base\nresources:\n  - package: {name: curl}\n";
        let of = |all: &[Assigned]| names(all, &host("web1"));
        assert_eq!(of(&[assigned("base", base, None), assigned("site-a", site, None)]), None);
        assert_eq!(of(&[assigned("tunnel", tunnel, None)]), Some(vec![]));
        let both = [assigned("tunnel", tunnel, None), assigned("site-a", site, None)];
        assert_eq!(of(&both), Some(vec!["a.example".to_owned()]));
        let given =
            [assigned("tunnel", tunnel, Some("b.example, c.example")), assigned("site-a", site, None)];
        assert_eq!(of(&given), Some(vec!["b.example".to_owned(), "c.example".to_owned()]));
        let mut known = host("web1");
        known.vars.insert(HOSTNAMES.to_owned(), "d.example".to_owned());
        assert_eq!(names(&both, &known), Some(vec!["d.example".to_owned()]));
        let with_ssh = "name: tunnel\nvars: {tunnel_token: t, ssh_hostname: '', admin: ada}\nresources:\n  - package: {name: curl}\n";
        let mut given = assigned("tunnel", with_ssh, None);
        assert_eq!(login(std::slice::from_ref(&given), &host("web1")), None);
        given.vars.insert(SSH_HOSTNAME.to_owned(), "ssh.example".to_owned());
        let wanted = Wanted { user: "ada".to_owned(), name: "ssh.example".to_owned() };
        assert_eq!(login(&[given], &host("web1")), Some(wanted));
        let many = ["x.example"; 9].join(" ");
        assert_eq!(of(&[assigned("tunnel", tunnel, Some(&many))]).map(|names| names.len()), Some(MOST));
    }
}
