//! A host, bundles of files, and what a test asks of a compiled profile.

use std::collections::BTreeMap;

use postern::profile::{Bundle, Compiled, Facts, Inputs, compile};
use serde_json::Value;

pub(crate) fn map(values: &[(&str, &str)]) -> BTreeMap<String, String> {
    values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

pub(crate) fn facts() -> Facts {
    Facts {
        name: "web1".into(),
        labels: map(&[("role", "web")]),
        os_id: "debian".into(),
        os_version: "13".into(),
        arch: "x86_64".into(),
        hostname: "vps-7".into(),
        room: Default::default(),
    }
}

pub(crate) fn on_host() -> Inputs {
    Inputs { facts: Some(facts()), secrets: Some([("db/pass-1".to_owned(), 3)].into()), ..Inputs::default() }
}

/// The first file is the profile, the others are those it names.
pub(crate) fn bundle(files: &[(&str, &str)]) -> Bundle {
    let (first, rest) = files.split_first().unwrap();
    rest.iter().fold(Bundle::new(first.0, first.1.as_bytes()), |bundle, (name, text)| {
        bundle.with(name, text.as_bytes())
    })
}

pub(crate) fn run(files: &[(&str, &str)], inputs: &Inputs) -> Result<Compiled, Vec<String>> {
    compile(&[bundle(files)], &[], inputs).map_err(|found| found.iter().map(ToString::to_string).collect())
}

pub(crate) fn good(files: &[(&str, &str)], inputs: &Inputs) -> Compiled {
    run(files, inputs).unwrap_or_else(|found| panic!("{found:#?}"))
}

pub(crate) fn resources(text: &str) -> String {
    format!("name: p\nvars: {{on: true, off: false, text: hi, empty: \"\"}}\nresources:\n{text}")
}

pub(crate) fn addresses(compiled: &Compiled) -> Vec<&str> {
    compiled.plan.resources.iter().map(|resource| resource.address.as_str()).collect()
}

pub(crate) fn spec<'a>(compiled: &'a Compiled, address: &str) -> &'a Value {
    let found = compiled.plan.resources.iter().find(|resource| resource.address.as_str() == address);
    &found.unwrap_or_else(|| panic!("{address} is not in {:?}", addresses(compiled))).spec
}
