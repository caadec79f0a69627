//! The texts that the servers of the small internet are started with. Pure.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The public names that the lab answers for. All else is asked of the machine's own resolvers.
pub(super) const NAMES: [&str; 16] = [
    DOCKER,
    CLOUDFLARE,
    REGISTRY,
    PRIVATE_REGISTRY,
    "auth.docker.io",
    "production.cloudflare.docker.com",
    ACME,
    ACME_STAGING,
    DNS_APIS[0].host,
    DNS_APIS[1].host,
    DNS_APIS[2].host,
    DNS_APIS[3].host,
    DNS_APIS[4].host,
    DNS_APIS[5].host,
    EDGE,
    TUNNEL,
];
/// Docker's packages.
pub(super) const DOCKER: &str = "download.docker.com";
/// Cloudflare's packages.
pub(super) const CLOUDFLARE: &str = "pkg.cloudflare.com";
/// Where tunnels are dialled to.
pub(super) const EDGE: &str = "region1.v2.argotunnel.com";
/// What is asked for by this name goes to whoever listens at the gateway's port 7845: to a test's edge.
pub(super) const TUNNEL: &str = "app.tunnel.test";
/// Let's Encrypt.
pub(super) const ACME: &str = "acme-v02.api.letsencrypt.org";
/// The one of theirs for trying out; here it is the same.
const ACME_STAGING: &str = "acme-staging-v02.api.letsencrypt.org";
/// Where the ACME server listens, at the gateway and for this machine alone: for clients, and for who runs it.
pub(super) const ACME_PORTS: [u16; 2] = [14000, 15000];
/// Where zones of a DNS provider are changed.
#[derive(Debug, Clone, Copy)]
pub struct DnsApi {
    /// The provider, as profile `swarm` names it.
    pub provider: &'static str,
    /// The public name of its API.
    pub host: &'static str,
    /// The one token that is good for it.
    pub token: &'static str,
}

const fn dns_api(provider: &'static str, host: &'static str, token: &'static str) -> DnsApi {
    DnsApi { provider, host, token }
}

/// The APIs that the lab answers for. Cloudflare's is the first; Linode's is early, since clients wait long for it.
pub(super) const DNS_APIS: [DnsApi; 6] = [
    dns_api("cloudflare", "api.cloudflare.com", "lab-cloudflare-token-0123456789abcdef"),
    dns_api("linode", "api.linode.com", "lab-linode-token-0123456789abcdef"),
    dns_api("digitalocean", "api.digitalocean.com", "lab-digitalocean-token-0123456789abcdef"),
    dns_api("hetzner", "api.hetzner.cloud", "lab-hetzner-token-0123456789abcdef"),
    dns_api("vultr", "api.vultr.com", "lab-vultr-token-0123456789abcdef"),
    dns_api("bunny", "api.bunny.net", "lab-bunny-token-0123456789abcdef"),
];

/// The lines `HOST TOKEN` that the stand-in for these APIs is told.
pub(super) fn dns_tokens() -> String {
    DNS_APIS.iter().map(|api| format!("{} {}\n", api.host, api.token)).collect()
}
/// Docker Hub.
const REGISTRY: &str = "registry-1.docker.io";
/// A registry that wants a login. It has the same images.
pub(super) const PRIVATE_REGISTRY: &str = "ghcr.io";
/// Who may have them, and by which password.
pub(super) const REGISTRY_LOGIN: (&str, &str) = ("lab-robot", "lab-registry-password-0123456789");
/// A zone that is nobody's outside, for records that come and go while the lab runs.
pub(super) const ZONE: &str = "lab.test";

/// Where the servers listen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gateway {
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
}

/// Configuration of the name server: our names are zones of their own, the rest is passed on as it is. `localhost` is
/// any address of the machine: the lab's own questions leave by address translation, as all that leaves its bridge.
pub(super) fn named(at: Gateway, resolvers: &[IpAddr]) -> String {
    let passed_on = if resolvers.is_empty() {
        "recursion no;".to_owned()
    } else {
        let list: String = resolvers.iter().map(|r| format!(" {r};")).collect();
        format!("recursion yes; forward only; forwarders {{{list} }};")
    };
    let (v4, v6) = (at.v4, at.v6);
    let ([a, b, c, _], [d, e, f, g, ..]) = (v4.octets(), v6.segments());
    let (hosts, hosts_v6) = (Ipv4Addr::new(a, b, c, 0), Ipv6Addr::new(d, e, f, g, 0, 0, 0, 0));
    let mut text = format!(
        "options {{\n  directory \"/var/cache/bind\"; pid-file none; session-keyfile none;\n  \
         listen-on {{ {v4}; }}; listen-on-v6 {{ {v6}; }}; interface-interval 0;\n  \
         allow-query {{ localhost; {hosts}/24; {hosts_v6}/64; }}; {passed_on}\n  \
         dnssec-validation no; empty-zones-enable no; notify no;\n}};\ncontrols {{ }};\n\
         zone \"{ZONE}\" {{ type primary; file \"{ZONE}\"; allow-update {{ localhost; }}; }};\n"
    );
    for name in NAMES {
        text += &format!("zone \"{name}\" {{ type primary; file \"/etc/lab/names.zone\"; }};\n");
    }
    text
}

/// What each of our names leads to.
pub(super) fn zone(at: Gateway) -> String {
    format!(
        "$TTL 1\n@ SOA ns.{ZONE}. lab.{ZONE}. 1 3600 600 86400 1\n@ NS ns.{ZONE}.\n@ A {}\n@ AAAA {}\n",
        at.v4, at.v6
    )
}

/// The zone of the lab itself, as it is at first.
pub(super) fn own_zone(at: Gateway) -> String {
    format!("{}ns A {}\nns AAAA {}\n", zone(at), at.v4, at.v6)
}

/// Configuration of the web server. A name without a place of its own is answered with 404, so that whoever asks
/// learns that it is the lab that has nothing for him.
pub(super) fn nginx(at: Gateway) -> String {
    let listen =
        |more: &str| format!("    listen {}:443 ssl{more};\n    listen [{}]:443 ssl{more};\n", at.v4, at.v6);
    let files = |name: &str, root: &str| {
        format!("  server {{\n{}    server_name {name};\n    root /srv/lab/www/{root};\n  }}\n", listen(""))
    };
    let images = "    client_max_body_size 0;\n    location / {\n      \
         proxy_pass http://unix:/run/lab/registry.sock;\n      proxy_set_header Host $http_host;\n      \
         proxy_set_header X-Forwarded-Proto https;\n      proxy_request_buffering off;\n    }\n";
    format!(
        "daemon off;\nuser www-data;\nworker_processes 1;\npid /run/nginx.pid;\nerror_log stderr;\n\
         events {{ worker_connections 512; }}\nhttp {{\n  \
         log_format asked '$remote_addr $request_method https://$host$request_uri $status';\n  \
         access_log /var/log/nginx/asked asked;\n  default_type application/octet-stream;\n  sendfile on;\n  \
         ssl_certificate /srv/lab/tls/server.crt;\n  ssl_certificate_key /srv/lab/tls/server.key;\n\
         {}{}{}  \
         server {{\n{}    server_name {};\n    location / {{\n      \
         proxy_pass http://unix:/run/lab/dns-apis.sock;\n      proxy_set_header Host $host;\n    }}\n  }}\n  \
         server {{\n{}    server_name {REGISTRY};\n{images}  }}\n  \
         server {{\n{}    server_name {PRIVATE_REGISTRY};\n    auth_basic lab;\n    \
         auth_basic_user_file /etc/lab/registry-users;\n{images}  }}\n  \
         server {{\n{}    server_name {TUNNEL};\n    location / {{\n      proxy_pass http://{}:7845;\n      \
         proxy_set_header Host $host;\n    }}\n  }}\n  \
         server {{\n{}    server_name _;\n    default_type text/plain;\n    \
         return 404 \"the lab answers for $host, and has nothing there\\n\";\n  }}\n}}\n",
        files(DOCKER, "docker"),
        files(CLOUDFLARE, "cloudflare"),
        acme(at, &listen("")),
        listen(""),
        DNS_APIS.map(|api| api.host).join(" "),
        listen(""),
        listen(""),
        listen(""),
        at.v4,
        listen(" default_server"),
    )
}

/// Configuration of the registry. It takes pushes too: what is pushed is gone with the run.
pub(super) const REGISTRY_YML: &str = "\
version: 0.1
storage:
  filesystem: {rootdirectory: /srv/lab/registry}
  delete: {enabled: true}
http: {net: unix, addr: /run/lab/registry.sock}
log: {level: warn}
";

/// The place of the ACME server, which has its directory elsewhere and makes its addresses of the name it is asked by.
fn acme(at: Gateway, listen: &str) -> String {
    let to = format!("https://{}:{}", at.v4, ACME_PORTS[0]);
    format!(
        "  server {{\n{listen}    server_name {ACME} {ACME_STAGING};\n    proxy_set_header Host $host;\n    \
         location / {{ proxy_pass {to}; }}\n    location = /directory {{ proxy_pass {to}/dir; }}\n  }}\n"
    )
}

/// Configuration of the ACME server, whose certificates are good for so many days.
pub(super) fn pebble(at: Gateway, days: u32) -> String {
    let ([clients, own], seconds) = (ACME_PORTS, u64::from(days) * 24 * 3600);
    format!(
        "{{\"pebble\": {{\"listenAddress\": \"{0}:{clients}\", \"managementListenAddress\": \"{0}:{own}\",\n\
         \"certificate\": \"/run/lab/server.crt\", \"privateKey\": \"/run/lab/server.key\",\n\
         \"httpPort\": 80, \"tlsPort\": 443, \"ocspResponderURL\": \"\",\n\
         \"certificateValidityPeriod\": {seconds}}}}}\n",
        at.v4
    )
}

/// The stand-in for the APIs of DNS providers.
pub(super) const DNS_APIS_PL: &str = include_str!("serve/dns-apis.pl");

/// Starts the servers as the first process of their namespace: when one ends, all do. The ACME server asks for each
/// challenge, takes every nonce of its own and does not wait: what it does at random by itself would be the tests' luck.
pub(super) fn start(at: Gateway) -> String {
    let server = at.v4;
    format!(
        "#!/bin/bash\nmkdir -p /run/lab /run/named\nchown www-data:www-data /run/lab\n\
         install -o www-data -m 400 -t /run/lab /srv/lab/tls/server.crt /srv/lab/tls/server.key\n\
         as='setpriv --reuid=www-data --regid=www-data --clear-groups'\n\
         $as docker-registry serve /etc/lab/registry.yml &\n\
         $as perl /etc/lab/dns-apis.pl /run/lab/dns-apis.sock {server} {ZONE} </etc/lab/dns-tokens &\n\
         PEBBLE_VA_NOSLEEP=1 PEBBLE_WFE_NONCEREJECT=0 PEBBLE_AUTHZREUSE=0 \
         $as pebble -config /etc/lab/pebble.json -dnsserver {server}:53 &\n\
         named -g -n 1 -u bind -c /etc/lab/named.conf &\n\
         nginx -c /etc/lab/nginx.conf &\n\
         wait -n\necho \"a server of the small internet ended with $?\"\nexit 1\n"
    )
}

/// The addresses after `nameserver` in a `resolv.conf`.
pub(super) fn resolvers(resolv_conf: &str) -> Vec<IpAddr> {
    let entries = resolv_conf.lines().filter_map(|line| line.strip_prefix("nameserver"));
    entries.filter_map(|address| address.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Gateway = Gateway {
        v4: Ipv4Addr::new(10, 213, 7, 1),
        v6: Ipv6Addr::new(0xfdb0, 0x57e2, 0x1ab0, 7, 0, 0, 0, 1),
    };

    #[test]
    fn only_the_names_of_the_lab_are_answered_here() {
        let resolvers = resolvers("# nameserver 192.0.2.9\nnameserver 192.0.2.1\nnameserver ::1\nsearch x\n");
        let text = named(AT, &resolvers);
        assert!(text.contains("forward only; forwarders { 192.0.2.1; ::1; };"), "{text}");
        let zones: Vec<&str> =
            text.lines().filter_map(|l| l.strip_prefix("zone \"")?.split('"').next()).collect();
        assert_eq!(zones.first(), Some(&ZONE));
        assert_eq!(zones[1..], NAMES);
        assert!(named(AT, &[]).contains("recursion no;"));
        assert!(text.contains("allow-query { localhost; 10.213.7.0/24; fdb0:57e2:1ab0:7::/64; };"), "{text}");
        assert!(zone(AT).contains("@ A 10.213.7.1\n@ AAAA fdb0:57e2:1ab0:7::1\n"));
    }
}
