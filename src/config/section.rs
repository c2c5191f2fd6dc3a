//! A section of the configuration, read key by key.
//!
//! Owns: the walk over the parsed TOML tree. A reader names each key once, with the parser of
//! its value; the section reports what is wrong at the place where it stands, goes on, and at
//! its end reports every key that nobody named. Never: what a key means.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Report, Source, nearest, quote};
use super::value::{Parsed, refuse, wrong_type};

/// One table of the file. A table that does not stand in the file reads as an empty one.
pub(super) struct Section<'t> {
    report: &'t Report,
    source: &'t Source,
    /// Dotted name with a dot at its end; empty for the top of the file.
    path: String,
    /// Octet of the file where it begins.
    offset: usize,
    table: Option<&'t DeTable<'t>>,
    known: Vec<&'static str>,
}

impl<'t> Section<'t> {
    /// The top of the file.
    pub(super) fn top(report: &'t Report, source: &'t Source, table: &'t DeTable<'t>) -> Self {
        let table = Some(table);
        Self { report, source, path: String::new(), offset: 0, table, known: Vec::new() }
    }

    /// The value of `key`; `None` when it is missing, or wrong and reported.
    pub(super) fn get<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&DeValue<'t>) -> Parsed<T>,
    ) -> Option<T> {
        let value = self.find(key)?;
        self.parse_at(key, value, &parse)
    }

    /// The values of the array `key`; wrong ones are reported, one by one, and left out.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        allowed: &str,
        parse: impl Fn(&DeValue<'t>) -> Parsed<T>,
    ) -> Option<Vec<T>> {
        let value = self.find(key)?;
        let array =
            self.parse_at(key, value, &|v| v.as_array().ok_or_else(|| wrong_type(v, allowed)))?;
        Some(array.iter().filter_map(|element| self.parse_at(key, element, &parse)).collect())
    }

    /// The table `key`.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'t> {
        let allowed = format!("a section [{}{key}]", self.path);
        let value = self.find(key);
        let table = value.and_then(|v| self.table_at(key, v, &allowed));
        self.child(format!("{}{key}.", self.path), value, table)
    }

    /// The tables of the array `key`; `None` when it is missing.
    pub(super) fn sections(&mut self, key: &'static str) -> Option<Vec<Section<'t>>> {
        let allowed = format!("sections [[{}{key}]]", self.path);
        let value = self.find(key)?;
        let array =
            self.parse_at(key, value, &|v| v.as_array().ok_or_else(|| wrong_type(v, &allowed)))?;
        let child = |element| {
            let table = self.table_at(key, element, &allowed)?;
            Some(self.child(format!("{}{key}.", self.path), Some(element), Some(table)))
        };
        Some(array.iter().filter_map(child).collect())
    }

    /// The tables within the table `key`, each with its name, in the order of the names.
    pub(super) fn named_sections(&mut self, key: &'static str) -> Vec<(&'t str, Section<'t>)> {
        let allowed = format!("sections [{}{key}.NAME]", self.path);
        let Some(value) = self.find(key) else { return Vec::new() };
        let tables = self.table_at(key, value, &allowed).into_iter().flatten();
        let child = |(name, value): (&'t Spanned<_>, &'t Spanned<DeValue<'t>>)| {
            let name: &'t std::borrow::Cow<'t, str> = name.get_ref();
            let table = self.table_at(key, value, &allowed)?;
            let path = format!("{}{key}.{}.", self.path, name.escape_debug());
            Some((name.as_ref(), self.child(path, Some(value), Some(table))))
        };
        tables.filter_map(child).collect()
    }

    /// A key of a part that does not exist yet.
    pub(super) fn later(&mut self, key: &'static str) {
        if self.find(key).is_some() {
            self.refuse_key(key, "not supported yet, allowed: to leave it out");
        }
    }

    /// Reports `what` about the value of `key`, or about the section when it has no such key.
    pub(super) fn refuse_key(&self, key: &'static str, what: &str) {
        let offset = self.value_of(key).map_or(self.offset, |value| value.span().start);
        self.refuse_at(offset, &format!("{}{key}: {what}", self.path));
    }

    /// Reports `what` about the section as a whole.
    pub(super) fn refuse(&self, what: &str) {
        self.refuse_at(self.offset, &format!("{}: {what}", self.path.trim_end_matches('.')));
    }

    fn refuse_at(&self, offset: usize, what: &str) {
        self.report.add(self.source.problem(offset, what.to_owned()));
    }

    fn find(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.known.push(key);
        self.value_of(key)
    }

    fn value_of(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        let (_, value) = self.table?.iter().find(|(name, _)| name.get_ref().as_ref() == key)?;
        Some(value)
    }

    fn parse_at<T>(
        &self,
        key: &str,
        value: &'t Spanned<DeValue<'t>>,
        parse: &dyn Fn(&'t DeValue<'t>) -> Parsed<T>,
    ) -> Option<T> {
        let report =
            |what| self.refuse_at(value.span().start, &format!("{}{key}: {what}", self.path));
        parse(value.get_ref()).map_err(report).ok()
    }

    fn table_at(
        &self,
        key: &str,
        value: &'t Spanned<DeValue<'t>>,
        allowed: &str,
    ) -> Option<&'t DeTable<'t>> {
        self.parse_at(key, value, &|v| v.as_table().ok_or_else(|| wrong_type(v, allowed)))
    }

    fn child(
        &self,
        path: String,
        value: Option<&'t Spanned<DeValue<'t>>>,
        table: Option<&'t DeTable<'t>>,
    ) -> Section<'t> {
        let offset = value.map_or(self.offset, |v| v.span().start);
        let (report, source) = (self.report, self.source);
        Section { report, source, path, offset, table, known: Vec::new() }
    }
}

/// The end of a section: a key that no reader named is unknown.
impl Drop for Section<'_> {
    fn drop(&mut self) {
        for (name, _) in self.table.into_iter().flatten() {
            let text = name.get_ref().as_ref();
            if self.known.contains(&text) {
                continue;
            }
            let hint = nearest(text, self.known.iter().copied())
                .map(|near| format!(" (did you mean {near}?)"))
                .unwrap_or_default();
            let unknown = format!("{}{}: unknown key{hint}", self.path, quote(text));
            self.refuse_at(name.span().start, &refuse(unknown, self.known.join(", ")));
        }
    }
}
