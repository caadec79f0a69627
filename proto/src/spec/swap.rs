//! `swap`: a swap file of a size, in use now and after every boot.

use serde::{Deserialize, Serialize};

use super::{Field, Holds, PRESENCE, Presence, ResourceSpec, SpecError, check_path};

/// Less than this helps nobody, MiB.
const LEAST_MB: u64 = 16;
/// The most, MiB: 1 TiB.
const MOST_MB: u64 = 1 << 20;

/// A swap file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwapSpec {
    /// Where it lies.
    #[serde(default = "swapfile")]
    pub path: String,
    /// Its size, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_mb: Option<u64>,
    /// In use now and at boot, or not there.
    #[serde(default)]
    pub state: Presence,
}

fn swapfile() -> String {
    "/swapfile".to_owned()
}

impl SwapSpec {
    /// What systemd calls its unit (`systemd-escape --path --suffix=swap`).
    #[must_use]
    pub fn unit(&self) -> String {
        let mut name = String::new();
        for (at, c) in self.path.trim_matches('/').char_indices() {
            match c {
                '/' => name.push('-'),
                '.' if at == 0 => name += "\\x2e",
                c if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | ':') => name.push(c),
                c => name += &format!("\\x{:02x}", u32::from(c)),
            }
        }
        format!("{name}.swap")
    }
}

impl ResourceSpec for SwapSpec {
    const KIND: &'static str = "swap";
    const SCHEMA: u32 = 1;
    const FIELDS: &'static [Field] = &[
        Field::optional("path", Holds::Text, "Where the file lies; /swapfile when left out."),
        Field::optional(
            "size_mb",
            Holds::Count,
            "Its size in MiB. Where the host has so much swap from others already, no file is made.",
        ),
        Field::optional(
            "state",
            PRESENCE,
            "present or absent; present when left out. absent: out of use and removed; swap of others stays.",
        ),
    ];
    const DOC: &'static str = "A swap file, in use now and at every boot.";
    const CANNOT_UNDO: &'static str = "UUID and label of a swap file that was there: it is made anew";

    fn natural_name(&self) -> String {
        self.path.clone()
    }

    fn validate(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        check_path("path", &self.path, &mut errors);
        // As it stands in /proc/swaps and in a unit, without an escape.
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        if errors.is_empty() && (self.path == "/" || !self.path.chars().all(plain)) {
            let why = "want the path of a file of letters, digits, / . _ and -";
            errors.push(SpecError::new("path", format!("{:?}: {why}", self.path)));
        }
        match (self.size_mb, self.state) {
            (None, Presence::Present) => errors.push(SpecError::new("size_mb", "missing")),
            (Some(_), Presence::Absent) => {
                errors.push(SpecError::new("size_mb", "a swap file that is to be absent has no size"));
            }
            (Some(size), _) if !(LEAST_MB..=MOST_MB).contains(&size) => {
                errors.push(SpecError::new("size_mb", format!("want {LEAST_MB} to {MOST_MB}")));
            }
            _ => {}
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `systemd-escape --path --suffix=swap` on Debian 12 has it.
    #[test]
    fn units_by_table() {
        for (path, unit) in [
            ("/swapfile", "swapfile.swap"),
            ("/var/lib/swap-1.img", "var-lib-swap\\x2d1.img.swap"),
            ("/.swap", "\\x2eswap.swap"),
            ("/var/.swap_2", "var-.swap_2.swap"),
        ] {
            let spec = SwapSpec { path: path.to_owned(), size_mb: Some(16), state: Presence::Present };
            assert_eq!(spec.unit(), unit);
            assert_eq!(spec.validate(), [], "{path}");
        }
    }
}
