//! SSH let in again by hand, on the provider's console: no controller is asked, and it lasts over a restart.

use std::collections::BTreeSet;

use super::{Family, Loader, rules};
use crate::sys::{NewFile, Sys};

/// A rules file is no longer than this, bytes.
const LIMIT: u64 = 4 << 20;
/// Where nothing says where SSH is.
const USUAL: u16 = 22;

/// Puts both families' rules in force with the ports of SSH let in, in their files too; which ports those are. `listens`
/// is where sshd listens now.
pub(crate) fn let_ssh_in(host: &Sys, listens: &BTreeSet<u16>) -> Result<BTreeSet<u16>, String> {
    let mut files = Vec::new();
    for family in Family::ALL {
        let path = family.path();
        let said = |error: crate::sys::SysError| error.to_string();
        let Some(bytes) = host.read(path, LIMIT).map_err(said)? else { continue };
        let text = String::from_utf8(bytes).map_err(|_| format!("{path} is no text"))?;
        let meta = host.meta(path).map_err(said)?.ok_or_else(|| format!("{path} is gone"))?;
        files.push((path, text, meta));
    }
    if files.is_empty() {
        return Err(
            "there is no firewall of Postern here: SSH is shut by something else, or not at all".to_owned()
        );
    }
    let mut ports: BTreeSet<u16> = files.iter().flat_map(|(_, text, _)| rules::shut_in(text)).collect();
    ports.extend(listens);
    if ports.is_empty() {
        ports.insert(USUAL);
    }
    // Both are made before one is written.
    let mut new = Vec::new();
    for (path, text, meta) in &files {
        let text = rules::let_in(text, &ports).ok_or_else(|| format!("{path} has no chain of ours"))?;
        new.push((*path, text, meta));
    }
    for (path, text, meta) in new {
        let file = NewFile { path, content: text.as_bytes(), mode: meta.mode, uid: meta.uid, gid: meta.gid };
        host.replace(&file, |_| Ok(())).map_err(|error| error.to_string())??;
    }
    Loader.load()?;
    Ok(ports)
}
