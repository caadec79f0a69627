//! Filling variables into single scalars. A template never sees YAML, so no value can add structure.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value, filters};
use postern_proto::text::{Hole, Part};
use saphyr_parser::ScalarStyle;

use super::diag::{Place, Sink, quoted};
use super::facts::{self, RESERVED};
use super::holes::{self, Holes, Secrets};
use super::vars::{Declared, undeclared_hint};
use super::yaml::Scalar;

/// What one template may cost, in instructions of the template engine.
const FUEL: u64 = 20_000;
/// The longest template and the longest result, bytes.
const MAX_TEXT: usize = 512 * 1024;
/// The longest condition, bytes.
const MAX_CONDITION: usize = 4096;

/// True when a text has to be rendered.
pub(crate) fn is_template(text: &str) -> bool {
    ["{{", "{%", "{#"].iter().any(|mark| text.contains(mark))
}

/// A text with a template in it, and where it stands.
#[derive(Clone, Copy)]
pub(crate) struct Site<'a> {
    text: &'a str,
    start: Place,
    form: Form,
}

/// How a text stands in its file.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Plain,
    SingleQuoted,
    DoubleQuoted,
    Block,
    /// It is the whole file.
    File,
}

impl Form {
    /// Characters that are written otherwise in this form, or that end the line.
    fn escapes(self) -> &'static [char] {
        match self {
            Self::SingleQuoted => &['\n', '\''],
            Self::DoubleQuoted => &['\n', '\t', '\\', '"'],
            Self::Plain | Self::Block | Self::File => &['\n'],
        }
    }
}

impl<'a> Site<'a> {
    pub(crate) fn of(scalar: &'a Scalar, start: Place) -> Self {
        let form = match scalar.style {
            ScalarStyle::Plain => Form::Plain,
            ScalarStyle::SingleQuoted => Form::SingleQuoted,
            ScalarStyle::DoubleQuoted => Form::DoubleQuoted,
            ScalarStyle::Literal | ScalarStyle::Folded => Form::Block,
        };
        Self { text: &scalar.text, start, form }
    }

    pub(crate) fn file(text: &'a str) -> Self {
        Self { text, start: Place::START, form: Form::File }
    }

    /// The place in the file of a place in the text, as near as it can be told: exact in a file and in a text
    /// on one line without escapes, the line in a block, the beginning of the text otherwise.
    fn locate(&self, offset: Option<usize>, line: Option<usize>) -> Place {
        let before = offset.and_then(|offset| self.text.get(..offset));
        let line = before.map_or(line.unwrap_or(1), |before| 1 + before.matches('\n').count());
        match (self.form, before) {
            (Form::Block, _) => Place { line: self.start.line + line - 1, column: 1 },
            (Form::File, Some(before)) => {
                let last = before.rsplit('\n').next().unwrap_or_default();
                Place { line, column: 1 + last.chars().count() }
            }
            (Form::File, None) => Place { line, column: 1 },
            // What was written in another way than it reads moves all that is behind it.
            (form, Some(before)) if !form.escapes().iter().any(|escaped| before.contains(*escaped)) => {
                let quote = usize::from(form != Form::Plain);
                let column = self.start.column + before.chars().count() + quote;
                Place { line: self.start.line, column }
            }
            _ => self.start,
        }
    }

    pub(crate) fn is_file(&self) -> bool {
        self.form == Form::File
    }

    /// Where a hole stands.
    pub(crate) fn place_of(&self, hole: &Hole) -> Place {
        let (text, word) = match hole {
            Hole::Late(name) => (format!("late.{name}"), "late"),
            Hole::Secret(_) => ("secret".to_owned(), "secret"),
        };
        self.locate(self.find(&text).or_else(|| self.find(word)), None)
    }

    /// Where a name stands in a template's expressions, as near as can be told without parsing it.
    fn find(&self, name: &str) -> Option<usize> {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let mut from = if is_template(self.text) {
            self.text.find("{{").into_iter().chain(self.text.find("{%")).min()?
        } else {
            0
        };
        while let Some(at) = self.text.get(from..)?.find(name).map(|at| from + at) {
            let before = self.text.get(..at)?.chars().next_back();
            let after = self.text.get(at + name.len()..)?.chars().next();
            if !before.is_some_and(|c| is_word(c) || c == '.') && !after.is_some_and(is_word) {
                return Some(at);
            }
            from = at + name.len();
        }
        None
    }
}

/// The engine with the variables of one profile.
pub(crate) struct Templates {
    environment: Environment<'static>,
    values: BTreeMap<String, Value>,
    /// All variables, those without a value included.
    names: Vec<String>,
    /// Those of `names` that have no value; why was reported.
    missing: Vec<String>,
    secrets: Arc<Secrets>,
}

impl Templates {
    pub(crate) fn new(declared: &Declared, facts: BTreeMap<String, Value>, secrets: Arc<Secrets>) -> Self {
        let mut values = facts;
        values.extend(declared.values.iter().map(|(name, var)| (name.clone(), Value::from(var))));
        let missing =
            declared.names.iter().filter(|name| !declared.values.contains_key(*name)).cloned().collect();
        Self { environment: environment(), values, names: declared.names.clone(), missing, secrets }
    }

    /// The text with its variables filled in; `None` when that fails, which is then reported.
    pub(crate) fn render(&self, site: Site<'_>, sink: &mut Sink) -> Option<Vec<Part>> {
        if !is_template(site.text) {
            return Some(vec![Part::Text(site.text.to_owned())]);
        }
        if !self.form(site, sink) || self.lacks(site) {
            return None;
        }
        let holes = Holes::new(&self.secrets);
        let mut values = self.values.clone();
        values.extend(holes.values());
        let mut output = Limited(Vec::new());
        let result = self
            .environment
            .template_from_str(site.text)
            .and_then(|template| template.render_captured_to(Value::from(values), &mut output).map(drop));
        if let Some((message, hint)) = holes.problem() {
            let range = result.err().and_then(|error| error.range());
            let offset = range.map(|range| range.start).or_else(|| site.find("secret"));
            sink.hinted(site.locate(offset, None), message, hint);
            return None;
        }
        if let Err(error) = result {
            self.report(site, &error, sink);
            return None;
        }
        if let Some(hole) = holes.misused() {
            let place = site.place_of(&hole);
            let what = match hole {
                Hole::Late(name) => format!("late.{name}"),
                Hole::Secret(secret) => format!("secret('{}')", secret.id),
            };
            let message = format!("{what} is filled in on the host: nothing can be made of it here");
            sink.hinted(
                place,
                message,
                format!("no filter, comparison or condition; write {{{{ {what} }}}}"),
            );
            return None;
        }
        String::from_utf8(output.0).ok().map(|text| holes.split(&text))
    }

    /// Whether the text is a template and all its names are known, with a value or without.
    pub(crate) fn form(&self, site: Site<'_>, sink: &mut Sink) -> bool {
        if !is_template(site.text) {
            return true;
        }
        if site.text.len() > MAX_TEXT {
            let message = format!("a template of {} bytes, the limit is {MAX_TEXT}", site.text.len());
            sink.error(site.start, message);
            return false;
        }
        // With an assignment, a text can be doubled until memory is full within any sensible fuel.
        if let Some(word) = statements(site.text).find(|word| !ALLOWED_STATEMENTS.contains(word)) {
            let known = format!("known: {}; values belong under vars:", ALLOWED_STATEMENTS.join(", "));
            sink.hinted(site.start, format!("{{% {word} %}} is not known here"), known);
            return false;
        }
        match self.environment.template_from_str(site.text) {
            Ok(template) => self.names(site, template.undeclared_variables(true), sink),
            Err(error) => {
                self.report(site, &error, sink);
                false
            }
        }
    }

    /// Whether the text is a condition and all its names are known, with a value or without.
    pub(crate) fn condition_form(&self, site: Site<'_>, sink: &mut Sink) -> bool {
        if is_template(site.text) {
            sink.hinted(site.start, "when: is an expression already", "write it without {{ and }}");
            return false;
        }
        if site.text.len() > MAX_CONDITION {
            sink.error(site.start, format!("a condition of more than {MAX_CONDITION} bytes"));
            return false;
        }
        let names = match self.environment.compile_expression(site.text) {
            Ok(expression) => expression.undeclared_variables(true),
            Err(error) => {
                self.report(site, &error, sink);
                return false;
            }
        };
        if let Some(hole) =
            names.iter().map(|name| first(name)).find(|name| matches!(*name, "late" | "secret"))
        {
            let place = site.locate(site.find(hole), None);
            sink.error(place, "late values and secrets are not known when this is decided");
            return false;
        }
        self.names(site, names, sink)
    }

    /// The value of a condition; `None` when it has none, which is then reported.
    pub(crate) fn condition(&self, site: Site<'_>, sink: &mut Sink) -> Option<bool> {
        if !self.condition_form(site, sink) || self.lacks(site) {
            return None;
        }
        let result = self
            .environment
            .compile_expression(site.text)
            .and_then(|expression| expression.eval(self.values.clone()));
        match result {
            Err(error) => {
                self.report(site, &error, sink);
                None
            }
            Ok(value) if value.kind() == ValueKind::Bool => Some(value.is_true()),
            Ok(value) => {
                let message = format!("when wants true or false, this is {}", quoted(&value.to_string()));
                sink.hinted(site.start, message, "compare it: when: name == 'value'");
                None
            }
        }
    }

    /// Whether a variable that it uses has no value, which was reported.
    fn lacks(&self, site: Site<'_>) -> bool {
        !self.missing.is_empty() && self.missing.iter().any(|name| site.find(name).is_some())
    }

    /// Reports every name that is none; true when there is no such name.
    fn names(&self, site: Site<'_>, names: HashSet<String>, sink: &mut Sink) -> bool {
        let mut names: Vec<_> = names.into_iter().collect();
        names.sort();
        let mut good = true;
        for name in &names {
            let (first, rest) = name.split_once('.').unwrap_or((name, ""));
            if self.missing.iter().any(|missing| missing == first) {
                continue;
            }
            let problem = match facts::below(first) {
                Some(below) if rest.is_empty() => {
                    Some(format!("want {first}.{}", below.join(&format!(" or {first}."))))
                }
                Some(below) if !below.contains(&rest) => {
                    Some(format!("known: {first}.{}", below.join(&format!(", {first}."))))
                }
                Some(_) => None,
                None if self.values.contains_key(first) || matches!(first, "late" | "secret") => None,
                None if first == "memory_mb" => Some("the host has not said how much memory it has".into()),
                None => Some(undeclared_hint(first, &self.names)),
            };
            let Some(hint) = problem else { continue };
            good = false;
            let place = site.locate(site.find(name).or_else(|| site.find(first)), None);
            let message = match RESERVED.contains(&first) {
                true => format!("{} has no value", quoted(name)),
                false => format!("no variable is called {}", quoted(first)),
            };
            sink.hinted(place, message, hint);
        }
        good
    }

    fn report(&self, site: Site<'_>, error: &Error, sink: &mut Sink) {
        let range = error.range().filter(|range| site.text.get(range.clone()).is_some());
        let place = site.locate(range.as_ref().map(|range| range.start), error.line());
        let expression = range.and_then(|range| site.text.get(range)).map(str::trim);
        match (error.kind(), expression) {
            (ErrorKind::UndefinedError, Some(expression)) if expression.starts_with("labels.") => {
                let hint = "set it with `postern host label`, or ask: labels.NAME is defined";
                sink.hinted(place, format!("the host has no {}", quoted(expression)), hint);
            }
            (ErrorKind::UndefinedError, Some(expression)) if expression.starts_with("host.") => {
                sink.hinted(place, format!("{} has no value", quoted(expression)), not_said(expression));
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
                if !is_template(site.text) {
                    let undefined =
                        detail.strip_prefix('`').and_then(|rest| rest.strip_suffix("` is undefined"));
                    match undefined.filter(|name| name.starts_with("host.")) {
                        Some(fact) => {
                            sink.hinted(place, format!("{} has no value", quoted(fact)), not_said(fact));
                        }
                        None => {
                            let hint = "write it like: os.version == '12' and not strict";
                            sink.hinted(place, format!("this is no condition: {detail}"), hint);
                        }
                    }
                    return;
                }
                // What was computed is wrong, not how it is written.
                if error.kind() == ErrorKind::InvalidOperation {
                    sink.error(place, detail);
                    return;
                }
                let hint = "for a text with {{ in it: \"{{ '{{' }}\"";
                sink.hinted(place, format!("the template does not render: {detail}"), hint);
            }
        }
    }
}

fn first(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

/// What to do about a fact of the host's that is not known.
fn not_said(fact: &str) -> String {
    format!("the host has not said it; ask first: {fact} is defined")
}

fn environment() -> Environment<'static> {
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
    environment.add_filter("words", words);
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
    environment.set_formatter(holes::put);
    environment
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

/// The words of a text, apart by any white space. Where words are given, one that is none of them is an error.
fn words(text: String, known: Rest<String>) -> Result<Vec<String>, Error> {
    let words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
    match words.iter().find(|word| !known.is_empty() && !known.contains(word)) {
        Some(word) => {
            let message = format!("{} is none of: {}", quoted(word), known.join(", "));
            Err(Error::new(ErrorKind::InvalidOperation, message))
        }
        None => Ok(words),
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
