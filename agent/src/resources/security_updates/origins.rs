//! Which repositories unattended-upgrades takes upgrades from: its patterns against apt's releases.

use serde::{Deserialize, Serialize};

/// What the patterns' variables stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Distribution {
    id: String,
    codename: String,
}

impl Distribution {
    /// From os-release(5).
    pub(super) fn parse(text: &str) -> Self {
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_default().trim().trim_matches('"').to_owned()
        };
        let id = field("ID");
        // As lsb_release writes it.
        let mut letters = id.chars();
        let id = letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect());
        Self { id, codename: field("VERSION_CODENAME") }
    }

    /// The pattern of the distribution's own security repository.
    pub(super) fn security_pattern(&self) -> &'static str {
        if self.id == "Ubuntu" {
            "origin=Ubuntu,archive=${distro_codename}-security"
        } else {
            "origin=Debian,codename=${distro_codename}-security,label=Debian-Security"
        }
    }

    fn fill_in(&self, value: &str) -> String {
        value.replace("${distro_codename}", &self.codename).replace("${distro_id}", &self.id)
    }
}

/// What a release file says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Release {
    origin: String,
    label: String,
    suite: String,
    codename: String,
    components: String,
    site: String,
}

impl Release {
    /// From the file and its name in apt's lists.
    pub(super) fn parse(name: &str, text: &str) -> Self {
        let field = |name: &str| {
            let head =
                text.lines().take_while(|line| !line.starts_with("SHA256:") && !line.starts_with("MD5Sum:"));
            let value = head.into_iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            value.unwrap_or_default().trim().to_owned()
        };
        let site = name.split('_').next().unwrap_or_default();
        Self {
            origin: field("Origin"),
            label: field("Label"),
            suite: field("Suite"),
            codename: field("Codename"),
            components: field("Components"),
            site: site.split(':').next().unwrap_or_default().to_owned(),
        }
    }

    /// Whether it is a distribution's repository of security updates.
    pub(super) fn is_security(&self) -> bool {
        self.label == "Debian-Security"
            || self.suite.ends_with("-security")
            || self.codename.ends_with("-security")
    }

    /// As unattended-upgrades matches `Origins-Pattern`: every part of it must fit.
    pub(super) fn matches(&self, pattern: &str, distribution: &Distribution) -> bool {
        if pattern.trim().is_empty() {
            return false;
        }
        pattern.replace("\\,", "\0").split(',').all(|part| {
            let Some((key, value)) = part.split_once('=') else { return false };
            let value = distribution.fill_in(&value.trim().replace('\0', ","));
            let fits = |text: &str| glob(value.as_bytes(), text.as_bytes());
            match key.trim() {
                "o" | "origin" => fits(&self.origin),
                "l" | "label" => fits(&self.label),
                "a" | "suite" | "archive" => fits(&self.suite),
                "n" | "codename" => fits(&self.codename),
                "c" | "component" => self.components.split_whitespace().any(fits),
                "site" => fits(&self.site),
                _ => false,
            }
        })
    }
}

/// `*` and `?` as in a shell; a class in brackets fits nothing here, which errs on the side of saying so.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from, mut star) = (0, 0, None);
    while from < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[from] => {
                at += 1;
                from += 1;
            }
            _ => match star {
                Some((back, taken)) => {
                    at = back + 1;
                    from = taken + 1;
                    star = Some((back, from));
                }
                None => return false,
            },
        }
    }
    pattern.get(at..).is_some_and(|rest| rest.iter().all(|byte| *byte == b'*'))
}

/// The patterns in a line of a dry run: `o=a,l=b, o=c`.
pub(super) fn split(line: &str) -> Vec<String> {
    line.split(", ").map(|one| one.trim().to_owned()).filter(|one| !one.is_empty()).collect()
}

/// The settings that matter here, as `apt-config dump` prints them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Config {
    update: String,
    upgrade: String,
    /// On when it is not set.
    enable: String,
    reboot: String,
    reboot_time: String,
    patterns: Vec<String>,
}

impl Config {
    pub(super) fn parse(dump: &str) -> Self {
        let mut config = Self::default();
        for line in dump.lines() {
            let Some((name, value)) = line.split_once(' ') else { continue };
            let value = value.trim().trim_end_matches(';').trim_matches('"').to_owned();
            match name.to_ascii_lowercase().as_str() {
                "apt::periodic::enable" => config.enable = value,
                "apt::periodic::update-package-lists" => config.update = value,
                "apt::periodic::unattended-upgrade" => config.upgrade = value,
                "unattended-upgrade::automatic-reboot" => config.reboot = value,
                "unattended-upgrade::automatic-reboot-time" => config.reboot_time = value,
                // Its entries may have names of their own after the colons.
                name if name.starts_with("unattended-upgrade::origins-pattern::") => {
                    config.patterns.push(value);
                }
                name if name.starts_with("unattended-upgrade::allowed-origins::") => {
                    let (origin, suite) = value.split_once([':', ' ']).unwrap_or((&value, ""));
                    config.patterns.push(format!("o={},a={}", origin.trim(), suite.trim()));
                }
                _ => {}
            }
        }
        config
    }

    /// What is not as it has to be, for people.
    pub(super) fn lacks(
        &self,
        security: &[Release],
        distribution: &Distribution,
        reboot: Option<&str>,
    ) -> Vec<String> {
        let mut lacks = Vec::new();
        let mut want = |name: &str, is: &str, so: bool| {
            if !so {
                lacks.push(format!("{name} is {is:?}"));
            }
        };
        // Days; 0 is never.
        let daily = |value: &str| value == "1" || value == "always";
        want("APT::Periodic::Enable", &self.enable, self.enable != "0");
        want("APT::Periodic::Update-Package-Lists", &self.update, daily(&self.update));
        want("APT::Periodic::Unattended-Upgrade", &self.upgrade, daily(&self.upgrade));
        let yes = ["true", "yes", "1", "on", "with", "enable"].contains(&self.reboot.to_lowercase().as_str());
        want("Unattended-Upgrade::Automatic-Reboot", &self.reboot, yes == reboot.is_some());
        if let Some(time) = reboot {
            want("Unattended-Upgrade::Automatic-Reboot-Time", &self.reboot_time, self.reboot_time == time);
        }
        let matched = |release: &Release| self.patterns.iter().any(|one| release.matches(one, distribution));
        if !security.iter().any(matched) {
            lacks.push("no origin that is allowed matches a security repository of apt's".to_owned());
        }
        lacks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INRELEASE: &str = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nOrigin: Debian\n\
                             Label: Debian-Security\nSuite: oldstable-security\nCodename: bookworm-security\n\
                             Components: updates/main main\nMD5Sum:\n Origin: 12\n";

    fn here() -> (Release, Distribution) {
        let release = Release::parse("deb.example:80_debian-security_dists_x_InRelease", INRELEASE);
        (release, Distribution::parse("ID=debian\nVERSION_CODENAME=\"bookworm\"\n"))
    }

    /// T08: the patterns that distributions and people write, and whether they match anything.
    #[test]
    fn trap_08_origins_by_table() {
        let (release, debian) = here();
        assert!(release.is_security());
        let cases = [
            ("origin=Debian,codename=${distro_codename}-security,label=Debian-Security", true),
            ("origin=Debian,codename=${distro_codename},label=Debian-Security", false),
            ("origin=Debian,codename=buster-security,label=Debian-Security", false),
            ("o=${distro_id},a=${distro_codename}-security", false),
            ("o=${distro_id},a=oldstable-security", true),
            ("o=*", true),
            ("o=D*n , l=?ebian-Security", true),
            ("site=deb.example", true),
            ("c=main", true),
            ("c=contrib", false),
            ("colour=red", false),
            ("Debian", false),
            ("", false),
        ];
        for (pattern, want) in cases {
            assert_eq!(release.matches(pattern, &debian), want, "{pattern}");
        }
        let globs = [
            ("a*b*c", "aXbYc", true),
            ("a*b", "ab", true),
            ("a*b", "abc", false),
            ("*", "", true),
            ("?", "", false),
        ];
        for (pattern, text, want) in globs {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), want, "{pattern} {text}");
        }
    }

    #[test]
    fn trap_08_what_is_in_force_decides() {
        let (release, debian) = here();
        let good = "APT::Periodic \"\";\nAPT::Periodic::Update-Package-Lists \"1\";\n\
                    APT::Periodic::Unattended-Upgrade \"1\";\nUnattended-Upgrade::Automatic-Reboot \"false\";\n\
                    Unattended-Upgrade::Origins-Pattern \"\";\n\
                    Unattended-Upgrade::Origins-Pattern:: \"origin=Debian,codename=${distro_codename}-security\";\n";
        let lacks =
            |dump: &str, reboot| Config::parse(dump).lacks(std::slice::from_ref(&release), &debian, reboot);
        assert_eq!(lacks(good, None), Vec::<String>::new());
        assert_eq!(lacks(good, Some("04:30")).len(), 2, "{:?}", lacks(good, Some("04:30")));
        let cases = [
            (good.replace("Upgrade \"1\"", "Upgrade \"0\""), "APT::Periodic::Unattended-Upgrade is \"0\""),
            (good.replace("Lists \"1\"", "Lists \"7\""), "APT::Periodic::Update-Package-Lists is \"7\""),
            (good.replace("codename}-s", "codename}-S"), "no origin that is allowed"),
            (format!("{good}APT::Periodic::Enable \"0\";\n"), "APT::Periodic::Enable is \"0\""),
            (good.replace("\"false\"", "\"true\""), "Unattended-Upgrade::Automatic-Reboot is \"true\""),
        ];
        for (dump, want) in cases {
            let got = lacks(&dump, None);
            assert!(got.len() == 1 && got[0].starts_with(want), "{want}: {got:?}");
        }
        let allowed = good.replace(
            "Origins-Pattern:: \"origin=Debian,codename=${distro_codename}-security\"",
            "Allowed-Origins:: \"${distro_id}:oldstable-security\"",
        );
        assert_eq!(lacks(&allowed, None), Vec::<String>::new());
        let line = "o=Debian,n=x, origin=Debian,codename=bookworm-security";
        assert!(split(line).iter().any(|one| release.matches(one, &debian)));
    }
}
