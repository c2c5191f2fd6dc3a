//! The smtproutes file: one route per line, `#` comments.
//!
//! Owns: reading the whole file into a route table, and edits of single lines that leave every
//! other octet of the file as it is. Never: the syntax of a line or the match (`route`).
//!
//! An edit is written to a new file beside the old one, synced, renamed over it, and the folder
//! is synced: after a crash the file is the old one or the new one, whole.
//!
//! Diagnostics: `file:line:column: what, and what is allowed`, all at once.
//!
//! Limits: [`FILE_OCTETS_MAX`].

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::problem::{Problem, Report, Source, quote};
use super::read::Place;
use super::section::Section;
use super::value::{Parsed, refuse, text};
use crate::route::{HostAddress, Pattern, Row, Table, Target, parse_row};

/// Longest smtproutes file, in octets: 1,000,000 routes of 500 octets.
pub const FILE_OCTETS_MAX: u64 = 500_000_000;

/// The table of the file that the key `routes` names, and the file; without the key, no routes.
pub(super) fn configured(place: &Place<'_>, top: &mut Section<'_>) -> (Option<PathBuf>, Table) {
    let found = top.get("routes", |value| {
        let file = place.base.join(text(value)?);
        let source = Source::read(&file, FILE_OCTETS_MAX).map_err(|problem| problem.to_string())?;
        Ok((file, source))
    });
    match found {
        Some((file, source)) => (Some(file), table(place.report, &source)),
        None => (None, Table::default()),
    }
}

/// Reads a routes file alone.
///
/// # Errors
/// Everything that is wrong in it.
pub fn load(file: &Path) -> Result<Table, Vec<Problem>> {
    let source = Source::read(file, FILE_OCTETS_MAX).map_err(|problem| vec![problem])?;
    let report = Report::default();
    let table = table(&report, &source);
    let problems = report.into_problems();
    if problems.is_empty() { Ok(table) } else { Err(problems) }
}

/// The table of a file; what is wrong goes to `report`.
fn table(report: &Report, source: &Source) -> Table {
    let mut rows: Vec<Row> = Vec::new();
    for (index, line) in source.text().split('\n').enumerate() {
        let number = u32::try_from(index + 1).expect("fewer lines than octets");
        match supported_row(line) {
            Ok(Some(row)) => rows.push(Row { line: number, ..row }),
            Ok(None) => {}
            Err((column, what)) => report.add(source.problem_in_line(index + 1, column, what)),
        }
    }
    let places: Vec<(u32, Pattern)> =
        rows.iter().map(|row| (row.line, row.pattern.clone())).collect();
    Table::build(rows).unwrap_or_else(|duplicates| {
        for duplicate in duplicates {
            let (line, pattern) = &places[duplicate.row];
            let first = places[duplicate.first].0;
            let line = usize::try_from(*line).expect("an index before");
            let taken = format!("{pattern} has a route in line {first} already");
            report.add(source.problem_in_line(line, 1, refuse(taken, "one for each domain")));
        }
        Table::default()
    })
}

/// The row of a line, if it asks for nothing that does not exist yet; else the column, from 1,
/// and what is wrong.
fn supported_row(line: &str) -> Result<Option<Row>, (usize, String)> {
    let Some(row) = parse_row(line).map_err(|error| (error.column, error.what))? else {
        return Ok(None);
    };
    let column_of_word = |number: usize| {
        let octet = words(line).nth(number).map_or(0, |(octet, _)| octet);
        line[..octet].chars().count() + 1
    };
    let no_names = "host names are not supported yet: use an address";
    let hosts = match &row.target {
        Target::UseDns => return Err((column_of_word(1), no_names.to_owned())),
        Target::Discard => &[][..],
        Target::Hosts(hosts) => hosts,
    };
    let named = |address: &HostAddress| match address {
        HostAddress::Ip(_) => false,
        HostAddress::Name(_) | HostAddress::Bracketed(_) => true,
    };
    if let Some(index) = hosts.iter().position(|host| named(&host.address)) {
        return Err((column_of_word(index + 1), no_names.to_owned()));
    }
    if row.auth.is_some() {
        let what = "auth=PROFILE is not supported yet, allowed: to leave it out";
        return Err((column_of_word(hosts.len() + 1), what.to_owned()));
    }
    Ok(Some(row))
}

/// The words of a line before its comment, each with the octet where it begins.
fn words(line: &str) -> impl Iterator<Item = (usize, &str)> {
    let route = &line[..comment_start(line).unwrap_or(line.len())];
    let mut next = 0;
    let pieces = route.split([' ', '\t', '\r', ',']).map(move |word| {
        let octet = next;
        next += word.len() + 1;
        (octet, word)
    });
    pieces.filter(|(_, word)| !word.is_empty())
}

/// Where the comment of a line begins: a `#` at the start of a word.
fn comment_start(line: &str) -> Option<usize> {
    let starts_word = |at: usize| at == 0 || b" \t\r,".contains(&line.as_bytes()[at - 1]);
    line.match_indices('#').map(|(at, _)| at).find(|at| starts_word(*at))
}

/// An smtproutes file in the hand of an editor: lines that no edit names stay as they are.
#[derive(Debug)]
pub struct RoutesFile {
    file: PathBuf,
    /// The text as it was read; a save refuses to overwrite anything else.
    original: String,
    lines: Vec<String>,
}

impl RoutesFile {
    /// Reads a file for edits. A file that does not exist reads as an empty one.
    ///
    /// # Errors
    /// The file cannot be read or has errors: they must be mended by hand first.
    pub fn read(file: &Path) -> Result<Self, Vec<Problem>> {
        // A link stays a link: the file behind it is replaced.
        let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
        let original = if file.exists() {
            load(&file)?;
            let source = Source::read(&file, FILE_OCTETS_MAX).map_err(|problem| vec![problem])?;
            source.text().to_owned()
        } else {
            String::new()
        };
        let lines = original.split('\n').map(str::to_owned).collect();
        Ok(Self { file, original, lines })
    }

    /// The whole text, with the edits.
    #[must_use]
    pub fn text(&self) -> String {
        self.lines.join("\n")
    }

    /// Adds a route at the end.
    ///
    /// # Errors
    /// `route` is no route, or its receiving domain has one.
    pub fn add(&mut self, route: &str) -> Result<(), String> {
        let row = one_row(route)?;
        if let Some(index) = self.line_of(&row.pattern) {
            return Err(format!("{} has a route in line {} already", row.pattern, index + 1));
        }
        match self.lines.last_mut() {
            Some(last) if last.is_empty() => *last = route.trim().to_owned(),
            _ => self.lines.push(route.trim().to_owned()),
        }
        self.lines.push(String::new());
        Ok(())
    }

    /// Puts `route` in the line of the route for `receiving_domain`. The comment of that line
    /// stays, unless `route` brings its own.
    ///
    /// # Errors
    /// There is no such route; `route` is no route, or its receiving domain has another one.
    pub fn replace(&mut self, receiving_domain: &str, route: &str) -> Result<(), String> {
        let row = one_row(route)?;
        let index = self.line_named(receiving_domain)?;
        if let Some(other) = self.line_of(&row.pattern).filter(|other| *other != index) {
            return Err(format!("{} has a route in line {} already", row.pattern, other + 1));
        }
        let old = &self.lines[index];
        let route_end = old[..comment_start(old).unwrap_or(old.len())].trim_end().len();
        let indent_end = old.len() - old.trim_start().len();
        let keeps_comment = comment_start(route).is_none();
        let tail = if keeps_comment { &old[route_end..] } else { "" };
        self.lines[index] = format!("{}{}{tail}", &old[..indent_end], route.trim());
        Ok(())
    }

    /// Removes the line of the route for `receiving_domain`.
    ///
    /// # Errors
    /// There is no such route.
    pub fn delete(&mut self, receiving_domain: &str) -> Result<(), String> {
        let index = self.line_named(receiving_domain)?;
        self.lines.remove(index);
        Ok(())
    }

    /// Writes the file, as the head of this page says. Mode and name stay.
    ///
    /// # Errors
    /// The system's; or the file was changed by somebody else since it was read.
    pub fn save(&mut self) -> io::Result<()> {
        let (current, mode) = match fs::metadata(&self.file) {
            Ok(metadata) => (fs::read_to_string(&self.file)?, Some(metadata.permissions())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (String::new(), None),
            Err(error) => return Err(error),
        };
        if current != self.original {
            return Err(io::Error::other("changed since it was read; read it again"));
        }
        let text = self.text();
        let name = self.file.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        let fresh = self.file.with_file_name(format!(".{}.new", name.to_string_lossy()));
        let mut file = File::create(&fresh)?;
        if let Some(mode) = mode {
            file.set_permissions(mode)?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, &self.file)?;
        let folder = self.file.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        self.original = text;
        Ok(())
    }

    /// Index of the line whose route has this pattern.
    fn line_of(&self, pattern: &Pattern) -> Option<usize> {
        let has =
            |line: &String| matches!(parse_row(line), Ok(Some(row)) if row.pattern == *pattern);
        self.lines.iter().position(has)
    }

    fn line_named(&self, receiving_domain: &str) -> Result<usize, String> {
        let refused = || refuse(quote(receiving_domain), "the receiving domain of a route");
        let one_word = words(receiving_domain).eq([(0, receiving_domain)]);
        let row = one_word.then(|| parse_row(&format!("{receiving_domain} /dev/null")));
        let row = row.and_then(Result::ok).flatten().ok_or_else(refused)?;
        self.line_of(&row.pattern).ok_or_else(|| format!("there is no route for {}", row.pattern))
    }
}

/// The row of a text that is one route and nothing else.
fn one_row(route: &str) -> Parsed<Row> {
    // A line end would smuggle in lines that nobody checked.
    if route.contains(['\n', '\r']) {
        return Err(refuse("more than one line", "one route"));
    }
    let row = supported_row(route).map_err(|(column, what)| format!("column {column}: {what}"))?;
    row.ok_or_else(|| refuse("no route", "RECEIVING-DOMAIN DESTINATION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# our routes\n\nexample.com   192.0.2.1:25/pri=0, 192.0.2.2/pri=10\t# two\n\
                        \u{20} .example.com 192.0.2.3\r\n# the rest\nALL [2001:db8::25]:587";

    fn edited(edit: impl Fn(&mut RoutesFile) -> Result<(), String>) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("smtproutes");
        fs::write(&file, TEXT).unwrap();
        let mut routes = RoutesFile::read(&file).unwrap();
        edit(&mut routes)?;
        routes.save().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no file is left behind");
        load(&file).unwrap();
        Ok(fs::read_to_string(&file).unwrap())
    }

    #[test]
    fn edits_change_their_line_only() {
        assert_eq!(edited(|_| Ok(())).unwrap(), TEXT);
        let added = edited(|r| r.add("old.example /dev/null # gone")).unwrap();
        assert_eq!(added, format!("{TEXT}\nold.example /dev/null # gone\n"));
        let replaced = edited(|r| r.replace("EXAMPLE.com", "example.com 192.0.2.9")).unwrap();
        let expected = TEXT
            .replace("example.com   192.0.2.1:25/pri=0, 192.0.2.2/pri=10", "example.com 192.0.2.9");
        assert_eq!(replaced, expected);
        let replaced = edited(|r| r.replace(".example.com", ".example.com 192.0.2.4 # new"));
        assert_eq!(
            replaced.unwrap(),
            TEXT.replace(".example.com 192.0.2.3\r", ".example.com 192.0.2.4 # new")
        );
        let deleted = edited(|r| r.delete("all")).unwrap();
        assert_eq!(deleted, TEXT.replace("\nALL [2001:db8::25]:587", ""));
        let both = edited(|r| r.delete("ALL").and_then(|()| r.add("ALL 192.0.2.7"))).unwrap();
        assert_eq!(both, TEXT.replace("ALL [2001:db8::25]:587", "ALL 192.0.2.7\n"));
    }

    #[test]
    fn edits_that_would_break_the_file_are_refused() {
        for (edit, words) in [
            (edited(|r| r.add("example.com 192.0.2.9")), "example.com has a route in line 3"),
            (edited(|r| r.add("a.example 192.0.2.9\nALL 192.0.2.1")), "more than one line"),
            (edited(|r| r.add("# only a comment")), "no route"),
            (edited(|r| r.add("a.example b.example")), "host names are not supported yet"),
            (edited(|r| r.delete("nowhere.example")), "there is no route for nowhere.example"),
            (edited(|r| r.delete("a.example 192.0.2.1,")), "the receiving domain of a route"),
            (edited(|r| r.replace("ALL", "example.com 192.0.2.9")), "in line 3 already"),
        ] {
            let error = edit.unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_change_by_somebody_else_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("smtproutes");
        let mut routes = RoutesFile::read(&file).unwrap();
        routes.add("ALL 192.0.2.1").unwrap();
        fs::write(&file, "ALL 192.0.2.2\n").unwrap();
        assert!(routes.save().is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "ALL 192.0.2.2\n");
        let mut routes = RoutesFile::read(&file).unwrap();
        routes.replace("ALL", "ALL 192.0.2.1").unwrap();
        routes.save().unwrap();
        routes.add("a.example 192.0.2.3").unwrap();
        routes.save().unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text, "ALL 192.0.2.1\na.example 192.0.2.3\n");
    }

    #[test]
    fn every_error_has_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("smtproutes");
        let text = "a.example 192.0.2.1\n  b.example\nc.example 192.0.2.1, mx.example # name\n\
                    d.example USEDNS\nA.example 192.0.2.2\ne.example 192.0.2.1  auth=partner\n\
                    f.example [mx.example]:587\n";
        fs::write(&file, text).unwrap();
        let problems = load(&file).err().unwrap();
        let places: Vec<(usize, usize)> = problems.iter().map(|p| (p.line, p.column)).collect();
        assert_eq!(places[1..], [(3, 22), (4, 11), (5, 1), (6, 22), (7, 11)], "{problems:#?}");
        assert_eq!(places[0].0, 2);
        assert!(problems.iter().all(|p| p.file == file));
        assert!(problems[1].what.starts_with("host names are not supported yet: use an address"));
        assert!(problems[3].what.contains("a.example has a route in line 1 already"));
        assert!(problems[4].what.contains("not supported yet"));
    }
}
