//! The shipped profiles `swarm` and `site`: what they say to Traefik is what Traefik knows, and what they trust is what
//! they were told to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use postern::profile::{Compiled, Inputs, compile, load};
use postern_proto::plan::PlannedResource;
use postern_proto::text;
use serde_json::Value;

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7v0FfLYOaQdrB8LCgF0d2BmZ8xJGkGkQq0pZzvYd5R me@example";

/// Every key of the static configuration that we use, as Traefik's reference has it: github.com/traefik/traefik, tag
/// v3.7.9, docs/content/reference/install-configuration/configuration-options.md. There they are in lower case, and a
/// name of one's own is `_name_`.
const KEYS: [&str; 18] = [
    "accesslog",
    "certificatesresolvers._name_.acme.caserver",
    "certificatesresolvers._name_.acme.dnschallenge.provider",
    "certificatesresolvers._name_.acme.email",
    "certificatesresolvers._name_.acme.storage",
    "entrypoints._name_.address",
    "entrypoints._name_.forwardedheaders.trustedips",
    "entrypoints._name_.http.redirections.entrypoint.priority",
    "entrypoints._name_.http.redirections.entrypoint.scheme",
    "entrypoints._name_.http.redirections.entrypoint.to",
    "entrypoints._name_.http3",
    "global.checknewversion",
    "global.sendanonymoususage",
    "log.level",
    "ping.entrypoint",
    "providers.swarm.endpoint",
    "providers.swarm.exposedbydefault",
    "providers.swarm.network",
];

/// Every label that we use: the same tag, docs/content/reference/routing-configuration/other-providers/swarm.md. The
/// names of routers and services are one's own.
const LABELS: [&str; 6] = [
    "traefik.enable",
    "traefik.http.routers.<router_name>.entrypoints",
    "traefik.http.routers.<router_name>.rule",
    "traefik.http.routers.<router_name>.tls.certresolver",
    "traefik.http.services.<service_name>.loadbalancer.server.port",
    "traefik.swarm.network",
];

/// DNS providers by Traefik's and lego's word for each, and where lego reads their token: github.com/go-acme/lego, tag
/// v5.2.2 as Traefik 3.7.9 is built with (v4 in its go.mod is for a test alone), providers/dns/NAME/NAME.toml; `_FILE`
/// by platform/env.
const PROVIDERS: [(&str, &str); 6] = [
    ("bunny", "BUNNY_API_KEY_FILE"),
    ("cloudflare", "CF_DNS_API_TOKEN_FILE"),
    ("digitalocean", "DO_AUTH_TOKEN_FILE"),
    ("hetzner", "HETZNER_API_TOKEN_FILE"),
    ("linode", "LINODE_TOKEN_FILE"),
    ("vultr", "VULTR_API_KEY_FILE"),
];

fn profile(name: &str, vars: &[(&str, &str)]) -> Compiled {
    let mut all = BTreeMap::new();
    if name == "swarm" || name == "base" {
        all.insert("admin_key".to_owned(), KEY.to_owned());
    }
    all.extend(vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let inputs = Inputs { vars: all, ..Inputs::default() };
    compile(&[load(name, Path::new("/")).unwrap()], &[], &inputs).unwrap_or_else(|found| panic!("{found:?}"))
}

#[test]
fn who_makes_certificates_is_one_of_those_that_are_known() {
    let vars =
        [("admin_key", KEY), ("dns", "cloudflare  hetzer")].map(|(name, value)| (name.into(), value.into()));
    let inputs = Inputs { vars: vars.into(), ..Inputs::default() };
    let found = compile(&[load("swarm", Path::new("/")).unwrap()], &[], &inputs).unwrap_err();
    let said = format!("{found:?}");
    let none = "\\\"hetzer\\\" is none of: cloudflare, digitalocean, hetzner, vultr, linode, bunny";
    assert!(said.contains(none) && !said.contains("a text with"), "{said}");
    // More than one space between two is no third.
    let servers = traefik(&[("dns", " cloudflare  hetzner ")]);
    let resolvers = servers.keys().filter(|key| key.ends_with(".acme.storage")).count();
    assert_eq!(resolvers, 2, "{servers:?}");
}

fn service(compiled: &Compiled) -> Value {
    let mut services = compiled.plan.resources.iter().filter(|resource| resource.kind == "swarm_service");
    services.next().unwrap().spec.clone()
}

/// Keys with their dots, and what each leaf is, of YAML as simple as ours.
fn keys(yaml: &str) -> BTreeMap<String, String> {
    let (mut path, mut found): (Vec<(usize, String)>, _) = (Vec::new(), BTreeMap::new());
    for line in yaml.lines().filter(|line| !line.trim().is_empty() && !line.trim().starts_with('#')) {
        let depth = line.len() - line.trim_start().len();
        let (key, value) = line.trim().split_once(':').unwrap_or_else(|| panic!("{line:?} in\n{yaml}"));
        path.retain(|(of, _)| *of < depth);
        path.push((depth, key.to_owned()));
        if !value.trim().is_empty() {
            let key: Vec<&str> = path.iter().map(|(_, key)| key.as_str()).collect();
            found.insert(key.join("."), value.trim().to_owned());
        }
    }
    found
}

fn traefik(vars: &[(&str, &str)]) -> BTreeMap<String, String> {
    let service = service(&profile("swarm", vars));
    keys(service["configs"]["/etc/traefik/traefik.yml"].as_str().unwrap())
}

/// A key in the reference's form.
fn plain(key: &str) -> String {
    let mut words: Vec<&str> = key.split('.').collect();
    if ["entryPoints", "certificatesResolvers"].contains(&words[0]) {
        words[1] = "_name_";
    }
    words.join(".").to_lowercase()
}

const ALL: [(&str, &str); 3] = [
    ("dns", "cloudflare digitalocean hetzner vultr linode bunny"),
    ("trusted_proxies", "192.0.2.0/24 2001:db8::/32"),
    ("acme_email", "me@example.org"),
];

#[test]
fn every_key_is_one_of_traefiks() {
    let used: BTreeSet<String> = traefik(&ALL).keys().map(|key| plain(key)).collect();
    let known: BTreeSet<String> = KEYS.iter().map(|key| (*key).to_owned()).collect();
    assert_eq!(used, known);
}

#[test]
fn every_label_is_one_of_traefiks() {
    let vars = [("domain", "www.example.org"), ("image", "nginx:1"), ("dns", "cloudflare"), ("port", "8080")];
    let spec: postern_proto::spec::SwarmServiceSpec =
        serde_json::from_value(service(&profile("site", &vars))).unwrap();
    let labels = spec.labels();
    let reference = |name: &str| {
        let mut words: Vec<&str> = name.split('.').collect();
        match words.get(2).copied() {
            Some("routers") => words[3] = "<router_name>",
            Some("services") => words[3] = "<service_name>",
            _ => {}
        }
        words.join(".")
    };
    let used: BTreeSet<String> = labels.keys().map(|name| reference(name)).collect();
    assert_eq!(used, LABELS.iter().map(|label| (*label).to_owned()).collect());
    assert_eq!(labels["traefik.http.routers.www-example-org.rule"], "Host(`www.example.org`)");
    assert_eq!(labels["traefik.http.routers.www-example-org.entrypoints"], "websecure");
    assert_eq!(labels["traefik.http.services.www-example-org.loadbalancer.server.port"], "8080");
    let bare: postern_proto::spec::SwarmServiceSpec =
        serde_json::from_value(service(&profile("site", &vars[..2]))).unwrap();
    assert_eq!(bare.labels()["traefik.http.routers.www-example-org.entrypoints"], "web");
    assert!(!bare.labels().keys().any(|name| name.contains(".tls")), "no certificate without who makes it");
}

#[test]
fn trap_21_forwarded_headers_are_nobodys_and_https_is_not_forced_without_a_certificate() {
    let bare = traefik(&[]);
    let has = |all: &BTreeMap<String, String>, word: &str| all.keys().any(|key| key.contains(word));
    assert!(
        !has(&bare, "forwardedHeaders")
            && !has(&bare, "redirections")
            && !has(&bare, "certificatesResolvers")
    );
    assert!(!has(&bare, "api"), "the dashboard is off: {bare:?}");
    let all = traefik(&ALL);
    for entry in ["web", "websecure"] {
        let trusted = &all[&format!("entryPoints.{entry}.forwardedHeaders.trustedIPs")];
        assert_eq!(trusted, "[\"192.0.2.0/24\", \"2001:db8::/32\", ]");
    }
    assert!(!has(&all, "insecure"), "{all:?}");
    assert_eq!(all["entryPoints.web.http.redirections.entryPoint.to"], "websecure");
    assert_eq!(
        all["certificatesResolvers.cloudflare.acme.caServer"],
        "https://acme-v02.api.letsencrypt.org/directory"
    );
    let staging = traefik(&[("dns", "hetzner"), ("acme_server", "staging")]);
    let server = &staging["certificatesResolvers.hetzner.acme.caServer"];
    assert_eq!(server, "https://acme-staging-v02.api.letsencrypt.org/directory");
    let own = traefik(&[("dns", "hetzner"), ("acme_server", "https://ca.example.org/d")]);
    assert_eq!(own["certificatesResolvers.hetzner.acme.caServer"], "https://ca.example.org/d");
}

#[test]
fn trap_22_tokens_are_scoped_and_reach_traefik_as_files_alone() {
    for (provider, variable) in PROVIDERS {
        let service = service(&profile("swarm", &[("dns", provider)]));
        let path = format!("/run/secrets/dns-{provider}");
        let env: BTreeMap<&str, &str> = service["env"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str().unwrap()))
            .filter(|(_, value)| !value.is_empty())
            .collect();
        assert_eq!(env, [(variable, path.as_str())].into(), "no other way in, and no global key");
        let secrets: Vec<String> = text::secrets(&service).into_iter().map(|secret| secret.id).collect();
        assert_eq!(secrets, [format!("dns-{provider}")]);
        assert_eq!(text::secrets(&service["secrets"][&path]).len(), 1, "{service}");
        let resolver = format!("certificatesResolvers.{provider}.acme.dnsChallenge.provider");
        assert_eq!(traefik(&[("dns", provider)])[&resolver], provider);
    }
    assert!(text::secrets(&service(&profile("swarm", &[]))).is_empty());
}

#[test]
fn trap_17_docker_is_held_at_the_major_that_was_tested_with_traefik() {
    let compiled = profile("swarm", &[("docker_major", "30")]);
    let file =
        compiled.plan.resources.iter().find(|one| one.address.as_str() == "swarm:file:docker-major").unwrap();
    let content = file.spec["content"].as_str().unwrap();
    assert!(
        content.contains("Pin: version 5:30.*\nPin-Priority: 990")
            && content.contains("Pin: version *\nPin-Priority: -1")
    );
    let image = service(&profile("swarm", &[]))["image"].as_str().unwrap().to_owned();
    let version: Vec<u32> =
        image.strip_prefix("traefik:v").unwrap().split('.').map(|part| part.parse().unwrap()).collect();
    assert!(version >= vec![3, 6, 1], "{image}: before 3.6.1 it speaks an API that Docker 29 refuses");
}

#[test]
fn the_socket_cannot_be_written_and_ports_are_the_hosts_own() {
    let service = service(&profile("swarm", &[]));
    assert_eq!(service["mounts"][0], "/run/docker.sock:/var/run/docker.sock:ro");
    assert_eq!(service["ports"], serde_json::json!(["80", "443", "443/udp"]));
}

/// Each transaction of apt costs seconds of its own: those of `base` and Docker's are one.
#[test]
fn all_packages_stand_together() {
    let present =
        |resource: &&PlannedResource| resource.kind == "package" && resource.spec["state"] != "absent";
    let compiled = profile("swarm", &[("swap_mb", "512")]);
    let all: Vec<_> = compiled.plan.resources.iter().collect();
    // What apt itself needs to fetch over https comes before the repository.
    let places: Vec<usize> = (0..all.len()).filter(|at| present(&all[*at])).collect();
    let (first, rest) = places.split_first().unwrap();
    assert_eq!(all[*first].address.as_str(), "swarm:package:ca-certificates");
    assert!(rest.windows(2).all(|pair| pair[1] == pair[0] + 1), "{places:?}");
    assert!(rest.len() >= 13, "{places:?}");
    // What takes memory or asks for it has its place before.
    let place = |kind: &str| all.iter().position(|one| one.kind == kind).unwrap();
    assert!(place("swap") < place("preflight") && place("preflight") < *first);
    // Nobody is kept from being asked about memory and disk where one of them is missing.
    let asked = all[place("preflight")].spec["packages"].as_array().unwrap().clone();
    let base = profile("base", &[]);
    for package in base.plan.resources.iter().filter(present) {
        assert!(asked.contains(&package.spec["name"]), "{}", package.address);
    }
}
