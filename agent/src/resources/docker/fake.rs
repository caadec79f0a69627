//! An engine for tests: answers by table on a socket below a directory that stands for a host, and remembers what it
//! was told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

use crate::sys::Sys;

type Answers = Arc<Mutex<HashMap<String, (u16, String)>>>;
/// Method and path, all lines of the head, and the body.
type Told = Arc<Mutex<Vec<(String, String, Value)>>>;

pub(in crate::resources) struct Fake {
    pub(in crate::resources) sys: Sys,
    pub(in crate::resources) dir: tempfile::TempDir,
    answers: Answers,
    told: Told,
    _serving: tokio_util::task::AbortOnDropHandle<()>,
}

impl Fake {
    pub(in crate::resources) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("run")).unwrap();
        std::fs::create_dir_all(dir.path().join("bin")).unwrap();
        let listener = UnixListener::bind(dir.path().join("run/docker.sock")).unwrap();
        let (answers, told) = (Answers::default(), Told::default());
        let (known, heard) = (Arc::clone(&answers), Arc::clone(&told));
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                let mut part = [0; 65536];
                let (head, body) = loop {
                    let got = stream.read(&mut part).await.unwrap_or(0);
                    request.extend_from_slice(&part[..got]);
                    let text = String::from_utf8_lossy(&request).into_owned();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                    if body.len() >= length.and_then(|length| length.parse().ok()).unwrap_or(0) || got == 0 {
                        break (head.to_owned(), body.to_owned());
                    }
                };
                let line = head.lines().next().unwrap_or_default();
                let what =
                    line.split(['?']).next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_owned();
                let body = serde_json::from_str(&body).unwrap_or_default();
                heard.lock().unwrap().push((what.clone(), head.clone(), body));
                let answer = known.lock().unwrap().get(&what).cloned();
                let (status, text) = answer.unwrap_or((404, "{\"message\":\"nothing there\"}".to_owned()));
                let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", text.len());
                let _ = stream.write_all((head + &text).as_bytes()).await;
            }
        });
        let path = format!("{}:/usr/bin:/bin", dir.path().join("bin").display());
        let sys = Sys::rooted(dir.path().to_owned(), path).with_key([7; 32]);
        Self { sys, dir, answers, told, _serving: tokio_util::task::AbortOnDropHandle::new(serving) }
    }

    /// What is said to `METHOD PATH`, without its query.
    pub(in crate::resources) fn answers(&self, what: &str, status: u16, body: Value) {
        self.answers_text(what, status, &body.to_string());
    }

    pub(in crate::resources) fn answers_text(&self, what: &str, status: u16, body: &str) {
        self.answers.lock().unwrap().insert(what.to_owned(), (status, body.to_owned()));
    }

    /// A program of the host's.
    pub(in crate::resources) fn program(&self, name: &str, script: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.dir.path().join("bin").join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A header of the last such request.
    pub(in crate::resources) fn header_of(&self, what: &str, name: &str) -> Option<String> {
        let told = self.told.lock().unwrap();
        let (_, head, _) = told.iter().rev().find(|(line, ..)| line == what)?;
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).next()
    }

    /// What was sent with the last such request.
    pub(in crate::resources) fn body_of(&self, what: &str) -> Value {
        let told = self.told.lock().unwrap();
        told.iter().rev().find(|(line, ..)| line == what).map(|(.., body)| body.clone()).unwrap_or_default()
    }
}
