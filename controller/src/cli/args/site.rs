//! `site`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

const ADD_HELP: &str = "\
The host needs Traefik, which profile `swarm` brings. With --dns the site is served by HTTPS, with a certificate
that Let's Encrypt gives for a record in the domain's DNS; the provider's token is a secret of its name:

  postern secret set dns-cloudflare
  postern site add web1 www.example.org --image nginx:1.29 --dns cloudflare

The domain's own DNS record leads to the host, or to its tunnel; that is not made here. A site that is there is
changed: what is not said stays as it is.";

const BACKUP_HELP: &str = "\
What Let's Encrypt gave to the Traefik of a host is on that host alone, and the same certificate is
given a few times a week only. The file has private keys in it: whoever has it can pass for these
domains. It is written with mode 0600, whole or not at all, and never over another file. On its way
here all of it is sealed to a key that this command alone has.";

const RESTORE_HELP: &str = "\
For a host that was made anew, once it has Traefik and before its sites are added:

  postern up root@HOST --profile swarm
  postern site restore HOST FILE
  postern site add HOST www.example.org --image nginx:1.29 --dns cloudflare

Nothing is written before all of it was verified on the host. Where the host has other certificates
in a file already, nothing is changed without --replace, which keeps what is there beside it as
NAME.before-restore. Traefik is restarted where something is new to it; connections that begin
meanwhile wait.";

#[derive(Debug, Subcommand)]
pub(crate) enum Site {
    /// Serve a domain by containers of an image, or change how that is done
    #[command(after_help = ADD_HELP)]
    Add(AddSite),
    /// List the sites of a host
    List {
        /// Name or id
        host: String,
    },
    /// Write the certificates of a host's sites, with their keys, to a file
    #[command(after_help = BACKUP_HELP)]
    Backup {
        /// Name or id
        host: String,
        /// A file that does not exist yet
        file: PathBuf,
    },
    /// Put certificates back on a host, so that nobody is asked for new ones
    #[command(after_help = RESTORE_HELP)]
    Restore {
        /// Name or id
        host: String,
        /// As `postern site backup` wrote it, of this host or another one
        file: PathBuf,
        /// Also where the host has other certificates already, which may be newer
        #[arg(long)]
        replace: bool,
    },
    /// End a site: its containers go, volumes and DNS records stay
    Remove {
        /// Name or id
        host: String,
        /// As `site list` names it
        domain: String,
        /// Show what would be done, and do nothing
        #[arg(long)]
        check: bool,
    },
}

/// `site add`.
#[derive(Debug, Args)]
pub(crate) struct AddSite {
    /// Name or id
    pub(crate) host: String,
    /// The domain, such as www.example.org
    pub(crate) domain: String,
    /// What its containers are made of, with a tag or digest
    #[arg(long)]
    pub(crate) image: Option<String>,
    /// Who logs in at the image's registry, and the secret that has the password or token; none for no login
    #[arg(long, value_name = "USER=SECRET")]
    pub(crate) registry_login: Option<String>,
    /// Where they listen with HTTP [default: 80]
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Who has the domain's DNS, for a certificate: cloudflare, digitalocean, hetzner, vultr, linode, bunny, or
    /// none for HTTP alone
    #[arg(long, value_name = "PROVIDER")]
    pub(crate) dns: Option<String>,
    /// How many containers [default: 1]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) replicas: Option<u16>,
    /// Of the containers' environment, repeatable; those that were there before go when one is given. Not for
    /// secrets: others on this machine can see the command line
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = super::pair)]
    pub(crate) env: Vec<(String, String)>,
    /// Show what would be done, and do nothing
    #[arg(long)]
    pub(crate) check: bool,
}
