//! A site as a profile: a few lines that give the shipped profile `site` its values. What a host is to have is so in
//! one place, and `apply`, `drift` and `undo` know of sites without being told. Pure.

use std::collections::BTreeMap;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::super::args::AddSite;
use crate::profile::{About, Bundle, load};

/// What all such profiles' names begin with.
const PREFIX: &str = "site-";
/// And their variables, so that those of no other profile are meant.
const OWN: &str = "site_";
/// The longest name of a profile is longer by what tells long ones apart.
const LONGEST_NAME: usize = 55;

/// Those that profile `swarm` has resolvers for.
pub(super) const PROVIDERS: [&str; 6] = ["cloudflare", "digitalocean", "hetzner", "vultr", "linode", "bunny"];

/// One site.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Site {
    pub(crate) domain: String,
    pub(crate) image: String,
    /// Who logs in at the image's registry; empty: nobody.
    pub(crate) registry_user: String,
    /// Which secret has the password.
    pub(crate) registry_secret: String,
    pub(crate) port: String,
    /// Empty: no certificate.
    pub(crate) dns: String,
    pub(crate) replicas: String,
    /// Lines of NAME=VALUE.
    pub(crate) env: String,
}

/// What is said of a site is no way to say it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) what: String,
    pub(super) hint: String,
}

fn wrong<T>(what: String, hint: &str) -> Result<T, Wrong> {
    Err(Wrong { what, hint: hint.to_owned() })
}

/// A domain as DNS has it: lower case, no dot at its end. RFC 1035, 2.3.1, and RFC 1123, 2.1.
pub(super) fn domain(text: &str) -> Result<String, Wrong> {
    let domain = text.trim_end_matches('.').to_ascii_lowercase();
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last_is_a_number =
        domain.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
    // A service of Docker's has its name, and those have 63 characters at most.
    if domain.len() > 63 || !domain.contains('.') || !domain.split('.').all(label) || last_is_a_number {
        let hint = "want a name such as www.example.org, of 63 characters at most, without https:// and path; others than \
                    ASCII in their xn-- form";
        return wrong(format!("{text:?} is no domain"), hint);
    }
    Ok(domain)
}

impl Site {
    /// What is wanted: what is said, or as it was, or as is usual.
    pub(super) fn wanted(args: &AddSite, before: Option<&Self>) -> Result<Self, Wrong> {
        let domain = domain(&args.domain)?;
        let before = before.cloned();
        let Some(image) = args.image.clone().or_else(|| before.as_ref().map(|site| site.image.clone()))
        else {
            return wrong(
                format!("{domain} is a new site, and no image is given for its containers"),
                "give one with --image",
            );
        };
        if image.is_empty() || image.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return wrong(format!("{image:?} is no image"), "want one such as nginx:1.29");
        }
        let before = before.unwrap_or_else(|| Self {
            port: "80".to_owned(),
            replicas: "1".to_owned(),
            ..Self::default()
        });
        let dns = match args.dns.as_deref() {
            None => before.dns,
            Some("none" | "") => String::new(),
            Some(provider) if PROVIDERS.contains(&provider) => provider.to_owned(),
            Some(other) => {
                let known = PROVIDERS.join(", ");
                return wrong(
                    format!("{other:?} is no DNS provider that is known"),
                    &format!("known are {known}"),
                );
            }
        };
        let (registry_user, registry_secret) = match args.registry_login.as_deref() {
            None => (before.registry_user, before.registry_secret),
            Some("none" | "") => (String::new(), String::new()),
            Some(login) => match login.rsplit_once('=') {
                Some((user, secret)) if !user.is_empty() && !secret.is_empty() => {
                    (user.to_owned(), secret.to_owned())
                }
                _ => {
                    let hint = "want USER=SECRET, and the password by `postern secret set SECRET`: others on this machine \
                                can see the command line";
                    return wrong("that is no login at a registry".to_owned(), hint);
                }
            },
        };
        let port = args.port.map_or(before.port, |port| port.to_string());
        let replicas = args.replicas.map_or(before.replicas, |number| number.to_string());
        if port == "0" || replicas == "0" {
            return wrong(
                "a port or a number of containers is not 0".to_owned(),
                "leave it out, or `site remove`",
            );
        }
        let lines = args.env.iter().map(|(name, value)| format!("{name}={value}"));
        let env = if args.env.is_empty() { before.env } else { lines.collect::<Vec<_>>().join("\n") };
        if let Some((name, _)) = args.env.iter().find(|(name, value)| {
            name.contains(|c: char| c.is_whitespace() || c.is_control())
                || value.chars().any(char::is_control)
        }) {
            return wrong(
                format!("{name:?} in the environment: neither it nor its value may have line breaks"),
                "",
            );
        }
        if [&image, &env, &registry_user, &registry_secret]
            .into_iter()
            .any(|text| ["{{", "{%", "{#"].iter().any(|open| text.contains(open)))
        {
            let hint = "write a profile of your own that includes `site`, and apply that";
            return wrong("what looks like a template cannot be given here".to_owned(), hint);
        }
        Ok(Self { domain, image, registry_user, registry_secret, port, dns, replicas, env })
    }

    /// What its service is called, as profile `site` has it; another domain may have the same.
    pub(super) fn service(&self) -> String {
        self.domain.replace('.', "-")
    }

    /// What its profile is called: the domain in it for people, and unlike any other's.
    pub(super) fn profile(&self) -> String {
        let plain = format!("{PREFIX}{}", self.domain.replace('.', "-"));
        // Two domains may differ in dots and dashes alone.
        if plain.len() <= LONGEST_NAME && !self.domain.contains('-') {
            return plain;
        }
        let hash = Sha256::digest(&self.domain);
        let hash: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let head: String = plain.chars().take(LONGEST_NAME).collect();
        format!("{}-{hash}", head.trim_end_matches('-'))
    }

    /// The profile with all that it includes.
    pub(super) fn bundle(&self, is_there: bool) -> Result<Bundle, String> {
        let quoted = |text: &str| Value::from(text).to_string();
        let name = self.profile();
        let state = if is_there { "present" } else { "absent" };
        let mut text = format!(
            "# Written by `postern site`.\nname: {name}\ndescription: {}\nvars:\n",
            quoted(&format!("The site {}", self.domain))
        );
        let mut passed = String::new();
        for (field, value) in self.fields() {
            text += &format!("  {OWN}{field}: {}\n", quoted(value));
            passed += &format!("      {field}: \"{{{{ {OWN}{field} }}}}\"\n");
        }
        text += &format!("resources:\n  - include: site\n    vars:\n{passed}      state: {state}\n");
        let site = load("site", std::path::Path::new("/")).map_err(|error| error.to_string())?;
        // Not by its own name: one that somebody applied as it is would be taken for a part of this.
        let shipped = site.text().unwrap_or_default().replacen("\nname: site\n", "\nname: container\n", 1);
        Ok(Bundle::new(&format!("{name}.yaml"), text.as_bytes()).with("site", shipped.as_bytes()))
    }

    fn fields(&self) -> [(&'static str, &str); 8] {
        [
            ("domain", &self.domain),
            ("image", &self.image),
            ("registry_user", &self.registry_user),
            ("registry_secret", &self.registry_secret),
            ("port", &self.port),
            ("dns", &self.dns),
            ("replicas", &self.replicas),
            ("env", &self.env),
        ]
    }

    /// The site of a profile that is assigned, with what was given for it; `None` for any other profile.
    pub(super) fn of(name: &str, about: &About, vars: &BTreeMap<String, String>) -> Option<Self> {
        name.strip_prefix(PREFIX)?;
        let value = |field: &str| {
            let name = format!("{OWN}{field}");
            let (_, default) = about.variables.iter().find(|(variable, _)| *variable == name)?;
            vars.get(&name).or(default.as_ref()).cloned()
        };
        Some(Self {
            domain: value("domain")?,
            image: value("image")?,
            // One that was added by an older version has neither.
            registry_user: value("registry_user").unwrap_or_default(),
            registry_secret: value("registry_secret").unwrap_or_default(),
            port: value("port")?,
            dns: value("dns")?,
            replicas: value("replicas")?,
            env: value("env")?,
        })
    }
}

/// The providers that are named in a profile's variable `dns`, and those of sites: in the order of [`PROVIDERS`], so
/// that the same set is the same text.
pub(super) fn providers<'a>(kept: &'a str, sites: impl Iterator<Item = &'a str>) -> String {
    let named: Vec<&str> = kept.split([' ', ',']).chain(sites).filter(|name| !name.is_empty()).collect();
    let known = PROVIDERS.into_iter().filter(|provider| named.contains(provider));
    let unknown = named.iter().copied().filter(|name| !PROVIDERS.contains(name));
    known.chain(unknown).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Inputs, about, compile};

    fn args(domain: &str) -> AddSite {
        AddSite {
            host: "web1".into(),
            domain: domain.into(),
            image: None,
            registry_login: None,
            port: None,
            dns: None,
            replicas: None,
            env: Vec::new(),
            check: false,
        }
    }

    #[test]
    fn domains_by_table() {
        for (text, want) in [
            ("www.example.org", Some("www.example.org")),
            ("Example.ORG.", Some("example.org")),
            ("xn--bcher-kva.example", Some("xn--bcher-kva.example")),
            ("a-b.c", Some("a-b.c")),
            ("localhost", None),
            ("https://example.org", None),
            ("example.org/path", None),
            ("-a.example", None),
            ("a-.example", None),
            ("a..example", None),
            ("192.0.2.1", None),
            ("bücher.example", None),
            ("a`) || Host(`b.example", None),
            ("", None),
        ] {
            assert_eq!(domain(text).ok().as_deref(), want, "{text}");
        }
        assert!(domain(&format!("{}.example", "a".repeat(64))).is_err());
    }

    #[test]
    fn what_is_not_said_stays() {
        let new =
            Site::wanted(&AddSite { image: Some("nginx:1".into()), ..args("a.example") }, None).unwrap();
        assert_eq!((new.port.as_str(), new.replicas.as_str(), new.dns.as_str()), ("80", "1", ""));
        let more = AddSite {
            port: Some(8080),
            dns: Some("hetzner".into()),
            env: vec![("A".into(), "b c=d".into())],
            ..args("a.example")
        };
        let changed = Site::wanted(&more, Some(&new)).unwrap();
        assert_eq!((changed.image.as_str(), changed.env.as_str()), ("nginx:1", "A=b c=d"));
        let login = |login: &str| AddSite { registry_login: Some(login.into()), ..args("a.example") };
        let private = Site::wanted(&login("robot$a=b=ghcr"), Some(&changed)).unwrap();
        assert_eq!((private.registry_user.as_str(), private.registry_secret.as_str()), ("robot$a=b", "ghcr"));
        assert_eq!(Site::wanted(&args("a.example"), Some(&private)).unwrap(), private);
        assert_eq!(Site::wanted(&login("none"), Some(&private)).unwrap(), changed);
        for bad in ["ada", "ada=", "=ghcr"] {
            assert!(
                Site::wanted(&login(bad), Some(&changed)).unwrap_err().what.contains("no login"),
                "{bad}"
            );
        }
        let none = AddSite { dns: Some("none".into()), ..args("a.example") };
        assert_eq!(Site::wanted(&none, Some(&changed)).unwrap(), Site { dns: String::new(), ..changed });
        for (bad, why) in [
            (args("a.example"), "no image is given"),
            (AddSite { image: Some("a b".into()), ..args("a.example") }, "is no image"),
            (AddSite { image: Some("{{x}}".into()), ..args("a.example") }, "template"),
            (
                AddSite { image: Some("a".into()), dns: Some("route53".into()), ..args("a.example") },
                "no DNS provider",
            ),
            (AddSite { image: Some("a".into()), port: Some(0), ..args("a.example") }, "is not 0"),
            (
                AddSite {
                    image: Some("a".into()),
                    env: vec![("A".into(), "b\nc".into())],
                    ..args("a.example")
                },
                "line breaks",
            ),
        ] {
            assert!(Site::wanted(&bad, None).unwrap_err().what.contains(why), "{why}");
        }
    }

    #[test]
    fn names_tell_domains_apart() {
        let name = |domain: &str| Site { domain: domain.into(), ..Site::default() }.profile();
        assert_eq!(name("www.example.org"), "site-www-example-org");
        let long = format!("{}.example", "a".repeat(60));
        let all = [name("a-b.c.example"), name("a.b-c.example"), name("a.b.c.example"), name(&long)];
        for (at, one) in all.iter().enumerate() {
            assert!(one.len() <= 64 && one.starts_with("site-"), "{one}");
            assert!(!all[..at].contains(one), "{one} is twice in {all:?}");
        }
    }

    #[test]
    fn a_site_is_read_from_its_profile_as_it_was_written() {
        let site = Site {
            domain: "www.example.org".into(),
            image: "registry.example:5000/a/b@sha256:00".into(),
            registry_user: "robot$a".into(),
            registry_secret: "ghcr".into(),
            port: "8080".into(),
            dns: "bunny".into(),
            replicas: "2".into(),
            env: "A=\"x: y\"\nB=# no comment".into(),
        };
        let bundle = site.bundle(true).unwrap();
        let again = Bundle::from_bytes(&bundle.to_bytes().unwrap()).unwrap();
        let found = Site::of(&site.profile(), &about(&again), &BTreeMap::new());
        assert_eq!(found.as_ref(), Some(&site));
        let given = BTreeMap::from([("site_port".to_owned(), "81".to_owned())]);
        assert_eq!(Site::of("site-x", &about(&again), &given).unwrap().port, "81");
        assert_eq!(Site::of("base", &about(&again), &given), None);
        assert_eq!(Site::of("site-x", &About::default(), &given), None);
        for (is_there, state) in [(true, None), (false, Some("absent"))] {
            let compiled = compile(&[site.bundle(is_there).unwrap()], &[], &Inputs::default()).unwrap();
            let spec = &compiled.plan.resources[0].spec;
            assert_eq!(spec["image"], "registry.example:5000/a/b@sha256:00");
            assert_eq!(spec.get("state").and_then(Value::as_str).filter(|it| *it != "present"), state);
            assert_eq!(spec["name"].as_str(), Some(site.service().as_str()));
            assert!(
                compiled.parts[0].covers.is_empty()
                    && !compiled.plan.resources[0].address.as_str().contains("/site:")
            );
            assert!(spec.to_string().contains("Host(`www.example.org`)"), "{spec}");
            assert!(spec.to_string().contains("# no comment"), "{spec}");
        }
    }

    #[test]
    fn providers_are_one_text_for_one_set() {
        for (kept, sites, want) in [
            ("", vec!["hetzner", "cloudflare", "hetzner"], "cloudflare hetzner"),
            ("hetzner, cloudflare", vec![""], "cloudflare hetzner"),
            ("mine", vec!["bunny"], "bunny mine"),
            ("", vec![], ""),
        ] {
            assert_eq!(providers(kept, sites.into_iter()), want, "{kept}");
        }
    }
}
