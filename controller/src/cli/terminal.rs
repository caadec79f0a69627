//! The person at the terminal: shows a bootstrap's steps, confirms host keys, gives secrets.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use postern_installer::{Console, HostKeyQuestion, Progress, Step};
use serde_json::json;
use zeroize::Zeroizing;

use super::clean;
use super::out::{Out, Volume};

/// The longest answer to a question, bytes.
const MAX_ANSWER: u64 = 1024;

/// The terminal, if there is one.
pub(crate) struct Terminal {
    out: Out,
    /// When each step began.
    begun: Mutex<HashMap<Step, Instant>>,
    /// The last step whose waiting was told on a stderr that is no terminal.
    waiting: Mutex<Option<Step>>,
}

impl Terminal {
    pub(crate) fn new(out: Out) -> Self {
        Self { out, begun: Mutex::default(), waiting: Mutex::default() }
    }

    fn is_new_wait(&self, step: Step) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.replace(step) != Some(step)
    }
}

fn question(host_key: &HostKeyQuestion) -> String {
    let HostKeyQuestion { host, port, algorithm, fingerprint, jump, known_hosts } = host_key;
    let what = if *jump { "The host on the way" } else { "The host" };
    let place = match known_hosts {
        Some(file) => format!("It will be added to {}.", file.display()),
        None => "It will not be remembered.".to_owned(),
    };
    let lines = [
        format!("{what} {host} (port {port}) shows a key that nobody has vouched for yet:"),
        format!("  {algorithm} {fingerprint}"),
        "Compare it with what the provider's console shows.".to_owned(),
        place,
    ];
    lines.iter().map(|line| clean::line(line) + "\n").collect::<String>()
        + "Is this the right key? Type yes or no: "
}

/// Asks on the terminal itself, whatever stdin and stderr are.
fn ask(text: &str) -> Option<String> {
    let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty").ok()?;
    let mut write = &terminal;
    write.write_all(text.as_bytes()).ok()?;
    write.flush().ok()?;
    let mut answer = String::new();
    let read = std::io::Read::take(&terminal, MAX_ANSWER);
    BufReader::new(read).read_line(&mut answer).ok()?;
    Some(answer.trim().to_owned())
}

/// A secret from the terminal, without showing it.
pub(crate) fn secret(prompt: &str) -> Option<Zeroizing<String>> {
    // rpassword writes to the terminal too, so the prompt is made harmless: parts of it come from servers.
    let prompt = clean::line(prompt);
    let prompt = prompt.trim_end();
    let colon = if prompt.ends_with([':', '?']) { "" } else { ":" };
    rpassword::prompt_password(format!("{prompt}{colon} ")).ok().map(Zeroizing::new)
}

#[async_trait]
impl Console for Terminal {
    async fn confirm_host_key(&self, host_key: &HostKeyQuestion) -> bool {
        let (out, text) = (self.out.clone(), question(host_key));
        let asked = tokio::task::spawn_blocking(move || {
            out.aside(|| {
                let mut answer = ask(&text)?;
                for _ in 0..2 {
                    match answer.to_ascii_lowercase().as_str() {
                        "yes" => return Some(true),
                        "no" | "n" | "" => return Some(false),
                        _ => answer = ask("Please type yes or no: ")?,
                    }
                }
                Some(false)
            })
        });
        matches!(asked.await, Ok(Some(true)))
    }

    async fn secret(&self, prompt: &str) -> Option<Zeroizing<String>> {
        let (out, prompt) = (self.out.clone(), prompt.to_owned());
        tokio::task::spawn_blocking(move || out.aside(|| secret(&prompt))).await.ok().flatten()
    }

    fn progress(&self, progress: &Progress) {
        let Progress { step, of, what, detail, count, done } = progress;
        let number = step.number();
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let since = *begun.entry(*step).or_insert_with(Instant::now);
        drop(begun);
        let detail = clean::line(detail);
        let after = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        let took = since.elapsed().as_secs_f64();
        if self.out.json {
            if *done || self.out.volume == Volume::Verbose {
                self.out.document(&json!({
                    "schema": "postern/bootstrap-step/v1", "step": number, "of": of, "what": what,
                    "detail": detail, "count": count, "done": done, "seconds": took,
                }));
            }
            return;
        }
        if *done {
            self.out.note(&format!("[{number:>2}/{of}] {what}{after}  {took:.2} s"));
            return;
        }
        let times = count.map(|count| format!(" ({count})")).unwrap_or_default();
        if let Some(bar) = self.out.bar() {
            bar.activity(&format!("[{number:>2}/{of}] {what}{after}{times}"));
        }
        // Where there is no bar, a wait is told once, and each look only to those who want to see them.
        let told = self.out.bar().is_none() && count.is_some() && self.is_new_wait(*step);
        if told || self.out.volume == Volume::Verbose {
            self.out.note(&format!("[{number:>2}/{of}] {what}{after}{times}…"));
        }
    }
}
