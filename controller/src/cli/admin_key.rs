//! The key that `postern up` gives to a profile's `admin_key`, where nobody named one: a public key of the user's.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::args::Ssh;
use super::compose::Wanted;
use super::error::CliError;
use super::{Context, clean};
use crate::client::{Client, HostChange, HostInfo};

/// The variable.
const VARIABLE: &str = "admin_key";
/// As OpenSSH tries them.
const USUAL: [&str; 5] = ["id_ed25519", "id_ecdsa", "id_ed25519_sk", "id_ecdsa_sk", "id_rsa"];
/// A longer file holds no public key, bytes.
const MAX_KEY: u64 = 16 * 1024;

/// A public key of the user's.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    file: PathBuf,
    text: String,
}

/// A key for profiles that ask for one and are given none.
pub(crate) fn wanted(context: &Context, wanted: &Wanted, ssh: &Ssh) -> Option<Key> {
    if !wanted.asks_for(VARIABLE) {
        return None;
    }
    let mistakes = |vars: &Vars| wanted.try_check(vars).err().map_or(0, |found| found.len());
    let key = find(context, ssh)?;
    // It is the weakest of all values: where it mends nothing, the operator gave one.
    let mends = mistakes(&with(Some(&key), Vars::new())) < mistakes(&Vars::new());
    mends.then_some(key)
}

type Vars = BTreeMap<String, String>;

/// The values of a host, with the key where they have none.
pub(crate) fn with(key: Option<&Key>, mut vars: Vars) -> Vars {
    if let Some(key) = key {
        vars.entry(VARIABLE.to_owned()).or_insert_with(|| key.text.clone());
    }
    vars
}

/// What profiles make with these values of a host, or everything that is wrong.
pub(crate) fn check(context: &Context, wanted: &Wanted, vars: &Vars) -> Result<(), CliError> {
    match wanted.check(context, vars) {
        Ok(_) => Ok(()),
        Err(error) if wanted.asks_for(VARIABLE) && !vars.contains_key(VARIABLE) => Err(error.hint(format!(
            "no public key of yours was found to be its {VARIABLE}; name one: --var {VARIABLE}=\"$(cat \
             ~/.ssh/id_ed25519.pub)\""
        ))),
        Err(error) => Err(error),
    }
}

/// Keeps the key with the host, so that later plans have it too.
pub(crate) async fn keep(
    context: &Context,
    client: &mut Client,
    mut host: HostInfo,
    key: Option<Key>,
    check: bool,
) -> Result<HostInfo, CliError> {
    let Some(key) = key.filter(|_| !host.vars.contains_key(VARIABLE)) else { return Ok(host) };
    let name = clean::line(&host.name);
    context.out.note(&format!(
        "{name}: {VARIABLE} is not given: taking {} (`postern host set {name} {VARIABLE}=…` changes it)",
        clean::line(&key.file.display().to_string())
    ));
    host.vars = with(Some(&key), host.vars);
    if !check {
        let set_vars = [(VARIABLE.to_owned(), key.text)].into();
        client.update_host(host.id, HostChange { set_vars, ..HostChange::default() }).await?;
    }
    Ok(host)
}

/// A public key and the file that it is in: the other half of a key that is named with `--identity`, else the first
/// of the usual ones. Private keys are not looked at.
fn find(context: &Context, ssh: &Ssh) -> Option<Key> {
    let named = ssh.identities.iter().map(|file| context.env.cwd.join(file));
    let home = context.env.home().map(|home| home.join(".ssh"));
    // Whoever names keys means these and no others.
    let private: Vec<_> = match (ssh.identities.is_empty(), home) {
        (false, _) => named.collect(),
        (true, Some(home)) => USUAL.iter().map(|name| home.join(name)).collect(),
        (true, None) => Vec::new(),
    };
    private.into_iter().find_map(|file| {
        let mut name = file.into_os_string();
        name.push(".pub");
        let file = PathBuf::from(name);
        let text = read(&file)?;
        Some(Key { file, text })
    })
}

/// The first line that holds a key. What is a key is for the profile's kind to judge.
fn read(file: &Path) -> Option<String> {
    let mut text = String::new();
    std::fs::File::open(file).ok()?.take(MAX_KEY).read_to_string(&mut text).ok()?;
    let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'))?;
    Some(line.to_owned())
}
