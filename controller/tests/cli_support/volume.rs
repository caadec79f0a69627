//! Stands in for agents that carry files of a volume: with the real sealing, and with no host behind it.

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postern_proto::event::{EventKind, RunState, StepEnd, Stream};
use postern_proto::parcel::{self, File, Parcel, Restored, RestoredFile, Service, Way};
use postern_proto::sealed::PrivateKey;
use postern_proto::spec::CommandSpec;
use postern_proto::v1;
use serde_json::json;
use zeroize::Zeroizing;

use super::{event, output, step};

const VOLUME: &str = "traefik-acme";
/// As an agent refuses, in short.
const DIFFERS: &str = "nothing was restored: the Docker volume traefik-acme has other content in cloudflare.json already, \
     which may be newer than the backup. Nothing was changed; `--replace` puts the backup in its place\n";
/// What must never be seen of what is carried.
pub(crate) const SECRET: &str = "private-key-of-the-account-7c1e";

/// One volume, and how its agent behaves.
#[derive(Clone, Default)]
pub(crate) struct FakeVolume {
    /// What is said instead, with its exit code.
    pub(crate) fails: Option<(&'static str, i32)>,
    /// Bytes that are missing at the end of what is sealed.
    pub(crate) short: usize,
    /// Bytes of a second file.
    pub(crate) large: usize,
    pub(crate) service: Service,
    /// It has other certificates already.
    pub(crate) differs: bool,
    /// How the command that writes ends instead of telling what it did.
    pub(crate) ends: Option<StepEnd>,
    /// What came back.
    pub(crate) restored: Arc<Mutex<Option<Parcel>>>,
    /// What came of the next one, before its last piece.
    pub(crate) pieces: Arc<Mutex<Vec<u8>>>,
}

fn key(byte: u8) -> PrivateKey {
    PrivateKey::new(Zeroizing::new([byte; 32]))
}

/// One of Traefik's files. The same bytes at each run, so that goldens can have their number.
fn acme() -> Vec<u8> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut params = rcgen::CertificateParams::new(["app.example.org".to_owned()]).unwrap();
    params.serial_number = Some(7.into());
    (params.not_before, params.not_after) =
        (rcgen::date_time_ymd(2031, 1, 1), rcgen::date_time_ymd(2031, 5, 1));
    let pem = params.self_signed(&key).unwrap().pem();
    let certificate = json!({"domain": {"main": "app.example.org"}, "certificate": STANDARD.encode(pem),
        "key": STANDARD.encode(SECRET), "Store": "default"});
    json!({"cloudflare": {"Account": {"Email": "ada@example.org", "PrivateKey": SECRET},
        "Certificates": [certificate]}})
    .to_string()
    .into_bytes()
}

impl FakeVolume {
    pub(crate) fn parcel(&self) -> Parcel {
        let file = |name: &str, content| File { name: name.into(), content: Zeroizing::new(content) };
        let mut files = vec![file("cloudflare.json", acme())];
        if self.large > 0 {
            files.push(file("large", vec![7; self.large]));
        }
        Parcel { files, left_out: vec!["link.json is a symbolic link\u{1b}[2J".into()] }
    }

    /// What is noted of such a command, and what its run sends; nothing for any other.
    pub(crate) fn exec(&self, spec: &[u8]) -> Option<(String, Vec<v1::run_update::Kind>, RunState)> {
        let spec: CommandSpec = serde_json::from_slice(spec).unwrap();
        let argv = spec.argv.unwrap();
        let words: Vec<&str> = argv.iter().map(String::as_str).collect();
        let ["/usr/local/bin/postern-agent", command, args @ ..] = words.as_slice() else { return None };
        let sent = spec.stdin.as_ref().map(|text| STANDARD.decode(text).unwrap());
        let mut failed = None;
        let said = match (*command, args) {
            _ if self.fails.is_some() => String::new(),
            ("seal-volume", [VOLUME, to]) => {
                let to = to.parse().unwrap();
                let sealed = self.parcel().seal(Way::Backup, VOLUME, &to, &key(1)).unwrap();
                let text = parcel::to_text(&sealed);
                text[..text.len() - self.short].to_owned()
            }
            ("volume-key", []) => key(2).public().to_string() + "\n",
            ("volume-piece", [offset]) => {
                let mut pieces = self.pieces.lock().unwrap();
                assert_eq!(*offset, pieces.len().to_string());
                pieces.extend(sent.as_ref().unwrap());
                String::new()
            }
            ("open-volume", [VOLUME, "traefik"]) if self.differs => {
                failed = Some((DIFFERS, StepEnd::Exit(1)));
                self.pieces.lock().unwrap().clear();
                String::new()
            }
            ("open-volume", [VOLUME, "traefik", how @ ..]) if matches!(how, [] | ["replace"]) => {
                failed = self.ends.clone().map(|end| ("", end));
                let mut sealed = std::mem::take(&mut *self.pieces.lock().unwrap());
                sealed.extend(sent.as_ref().unwrap());
                let parcel = Parcel::open(Way::Restore, VOLUME, &key(2), &sealed).unwrap();
                let file = |file: &File| RestoredFile {
                    name: file.name.clone(),
                    written: self.service != Service::Unchanged,
                    kept_as: (!how.is_empty()).then(|| format!("{}.before-restore", file.name)),
                };
                let files = parcel.files.iter().map(file).collect();
                let trouble = match self.service {
                    Service::NotRestarted | Service::Unknown => "its tasks fail",
                    Service::Overwritten => "cloudflare.json was written over meanwhile",
                    _ => "",
                };
                *self.restored.lock().unwrap() = Some(parcel);
                let said = Restored { files, service: self.service, trouble: trouble.into() };
                serde_json::to_string(&said).unwrap() + "\n"
            }
            other => panic!("no such command of the agent: {other:?}"),
        };
        // Neither as it is nor in base64.
        for form in [SECRET.to_owned(), STANDARD.encode(SECRET)] {
            assert!(!said.contains(&form) && !argv.concat().contains(&form) && spec.env.is_empty());
            assert!(!spec.stdin.as_ref().is_some_and(|text| text.contains(&form)));
        }
        let shown: Vec<&str> =
            argv.iter().map(|word| if word.len() == 64 { "KEY" } else { word.as_str() }).collect();
        let sent = sent.map(|sent| format!(" with {} bytes of cipher text", sent.len())).unwrap_or_default();
        let failed = failed.or(self.fails.map(|(why, code)| (why, StepEnd::Exit(code))));
        let (said, end) = failed.map_or((said, StepEnd::Exit(0)), |(why, end)| (why.to_owned(), end));
        let good = end == StepEnd::Exit(0);
        let state = if good { RunState::Ok } else { RunState::Failed };
        // As an agent sends it: in pieces of no more than a frame.
        let mut updates: Vec<_> = said
            .as_bytes()
            .chunks(32 * 1024)
            .map(|piece| output(if good { Stream::Stdout } else { Stream::Stderr }, piece))
            .collect();
        updates.push(event(EventKind::StepFinished { step: step(), end, frames: 1 }));
        Some((format!("exec {}{sent}", shown.join(" ")), updates, state))
    }
}
