//! Filling variables into single scalars. A template never sees YAML, so no value can add structure.

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value, filters};

use super::diag::{Place, Sink, closest, quoted};
use super::yaml::Scalar;

/// What one template may cost, in instructions of the template engine.
const FUEL: u64 = 20_000;
/// The longest template and the longest result, bytes.
const MAX_TEXT: usize = 512 * 1024;

/// A variable's value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Var {
    Text(String),
    Bool(bool),
    Whole(i64),
}

impl From<&Var> for Value {
    fn from(var: &Var) -> Self {
        match var {
            Var::Text(text) => Self::from(text.as_str()),
            Var::Bool(bool) => Self::from(*bool),
            Var::Whole(number) => Self::from(*number),
        }
    }
}

/// The engine with the variables of one profile.
pub(crate) struct Templates {
    environment: Environment<'static>,
    variables: Value,
    names: Vec<String>,
    /// Those of `names` that have no value; why was reported.
    missing: Vec<String>,
}

/// True when a text has to be rendered.
pub(crate) fn is_template(text: &str) -> bool {
    ["{{", "{%", "{#"].iter().any(|mark| text.contains(mark))
}

impl Templates {
    /// `known` are the names of all variables, those whose value was reported as missing included.
    pub(crate) fn new(values: &BTreeMap<String, Var>, known: Vec<String>) -> Self {
        // From nothing: the stock filters include some that a wrong number makes run out of memory.
        let mut environment = Environment::empty();
        environment.add_filter("default", filters::default);
        environment.add_filter("int", filters::int);
        environment.add_filter("join", filters::join);
        environment.add_filter("length", filters::length);
        environment.add_filter("lower", filters::lower);
        environment.add_filter("replace", replace);
        environment.add_filter("split", filters::split);
        environment.add_filter("trim", filters::trim);
        environment.add_filter("upper", filters::upper);
        environment.add_test("defined", minijinja::tests::is_defined);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        // A text keeps its last newline; a line with nothing but a statement leaves no empty line.
        let mut syntax = SyntaxConfig::builder();
        if let Ok(syntax) = syntax.keep_trailing_newline(true).trim_blocks(true).lstrip_blocks(true).build() {
            environment.set_syntax(syntax);
        }
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(32);
        environment.set_debug(true);
        let variables: BTreeMap<_, _> =
            values.iter().map(|(name, var)| (name.clone(), Value::from(var))).collect();
        let missing = known.iter().filter(|name| !values.contains_key(*name)).cloned().collect();
        Self { environment, variables: variables.into(), names: known, missing }
    }

    /// The text with its variables filled in; `None` when that fails, which is then reported.
    pub(crate) fn render(&self, scalar: &Scalar, place: Place, sink: &mut Sink) -> Option<String> {
        let source = &scalar.text;
        if !is_template(source) {
            return Some(source.clone());
        }
        if source.len() > MAX_TEXT {
            sink.error(place, format!("a template of {} bytes, the limit is {MAX_TEXT}", source.len()));
            return None;
        }
        // With an assignment, a text can be doubled until memory is full within any sensible fuel.
        if let Some(word) = statements(source).find(|word| !ALLOWED_STATEMENTS.contains(word)) {
            sink.hinted(
                place,
                format!("{{% {word} %}} is not known here"),
                format!("known: {}; values belong under vars:", ALLOWED_STATEMENTS.join(", ")),
            );
            return None;
        }
        let mut output = Limited(Vec::new());
        let result = self
            .environment
            .template_from_str(source)
            .and_then(|template| template.render_captured_to(self.variables.clone(), &mut output).map(drop));
        match result {
            Ok(()) => String::from_utf8(output.0).ok(),
            Err(error) => {
                self.report(scalar, place, &error, sink);
                None
            }
        }
    }

    fn report(&self, scalar: &Scalar, place: Place, error: &Error, sink: &mut Sink) {
        let range = error.range().and_then(|range| scalar.text.get(range.clone()).map(|_| range));
        let place = locate(scalar, place, range.as_ref().map(|range| range.start), error.line());
        let expression = range.and_then(|range| scalar.text.get(range)).map(str::trim);
        match (error.kind(), expression) {
            (ErrorKind::UndefinedError, Some(name)) if self.missing.iter().any(|missing| missing == name) => {
            }
            (ErrorKind::UndefinedError, Some(name)) if is_name(name) => {
                let known = self.names.iter().map(String::as_str);
                let hint = match closest(name, known) {
                    Some(close) => format!("did you mean {close}?"),
                    None => format!("declare it: vars: {{{name}: …}}"),
                };
                sink.hinted(place, format!("no variable is called {}", quoted(name)), hint);
            }
            (ErrorKind::UndefinedError, Some(expression)) => {
                sink.error(place, format!("{} has no value", quoted(expression)));
            }
            (ErrorKind::OutOfFuel, _) => sink.error(place, "this template does not come to an end"),
            (ErrorKind::WriteFailure, _) => {
                sink.error(place, format!("this template yields more than {MAX_TEXT} bytes"));
            }
            _ => {
                let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
                let hint = "for a text with {{ in it: \"{{ '{{' }}\"";
                sink.hinted(place, format!("the template does not render: {detail}"), hint);
            }
        }
    }
}

const ALLOWED_STATEMENTS: [&str; 8] = ["if", "elif", "else", "endif", "for", "endfor", "raw", "endraw"];

/// The first word of each `{% … %}`.
fn statements(source: &str) -> impl Iterator<Item = &str> {
    source.split("{%").skip(1).map(|rest| {
        let rest = rest.trim_start_matches(['-', '+']).trim_start();
        rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or("")
    })
}

fn replace(text: String, from: String, to: String) -> Result<String, Error> {
    let found = if from.is_empty() { text.chars().count() + 1 } else { text.matches(&from).count() };
    if text.len().saturating_add(found.saturating_mul(to.len())) > MAX_TEXT {
        return Err(Error::new(ErrorKind::InvalidOperation, "the text becomes too long"));
    }
    Ok(text.replace(&from, &to))
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The place in the file of a place in the scalar, as near as it can be told: exact in a text on one line
/// without escapes, the line in a block, the beginning of the text otherwise.
fn locate(scalar: &Scalar, start: Place, offset: Option<usize>, line: Option<usize>) -> Place {
    if scalar.is_block() {
        return Place { line: start.line + line.unwrap_or(1) - 1, column: 1 };
    }
    match offset {
        Some(offset) if !scalar.text.contains(['\n', '\\', '"', '\'']) => {
            let before = scalar.text.get(..offset).map_or(0, |before| before.chars().count());
            Place { line: start.line, column: start.column + before + usize::from(!scalar.is_plain()) }
        }
        _ => start,
    }
}

/// Refuses to grow beyond [`MAX_TEXT`].
struct Limited(Vec<u8>);

impl std::io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_TEXT {
            return Err(std::io::Error::other("too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
