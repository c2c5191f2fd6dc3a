//! What is wrong in a file of the configuration, and where.
//!
//! Owns: [`Problem`], the source text with its lines and columns, the collection of everything
//! that is wrong, and the search for the nearest known name. Never: what is allowed (the readers
//! of each section know that).
//!
//! Diagnostics: `file:line:column: what, and what is allowed`, lines and columns from 1, columns
//! in characters. Text from the file is escaped.

use std::cell::RefCell;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::mail::text;

/// Longest piece of a file that a problem repeats, in octets.
const QUOTE_OCTETS_MAX: usize = 80;

/// Longest name that is compared with the known ones, in characters.
const NAME_CHARS_MAX: usize = 64;

/// One thing that is wrong in a file of the configuration.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Problem {
    /// The file, as it was named.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong, and what is allowed; one line of text.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file.display(), self.line, self.column, self.what)
    }
}

/// A file's text, and where its lines begin.
#[derive(Debug)]
pub(super) struct Source {
    file: PathBuf,
    text: String,
    line_starts: Vec<usize>,
}

impl Source {
    /// The text of `file`.
    pub(super) fn new(file: &Path, text: String) -> Self {
        let after_newlines = text.bytes().enumerate().filter(|(_, b)| *b == b'\n');
        let line_starts = std::iter::once(0).chain(after_newlines.map(|(i, _)| i + 1)).collect();
        Self { file: file.to_owned(), text, line_starts }
    }

    /// Reads a whole text file of at most `octets_max` octets.
    ///
    /// # Errors
    /// The system's error, too long, or where the text is not UTF-8.
    pub(super) fn read(file: &Path, octets_max: u64) -> Result<Self, Problem> {
        let empty = || Self::new(file, String::new());
        let cannot = |e: std::io::Error| empty().problem(0, format!("cannot read: {e}"));
        let mut bytes = Vec::new();
        let handle = std::fs::File::open(file).map_err(cannot)?;
        handle.take(octets_max + 1).read_to_end(&mut bytes).map_err(cannot)?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > octets_max {
            let what = format!("too long, allowed: {octets_max} octets");
            return Err(empty().problem(0, what));
        }
        String::from_utf8(bytes).map(|text| Self::new(file, text)).map_err(|error| {
            let readable = error.utf8_error().valid_up_to();
            let before = String::from_utf8_lossy(&error.as_bytes()[..readable]).into_owned();
            Self::new(file, before).problem(readable, "not text, allowed: UTF-8".to_owned())
        })
    }

    /// The whole text.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// A problem at the octet `offset`.
    pub(super) fn problem(&self, offset: usize, what: String) -> Problem {
        let offset = offset.min(self.text.len());
        let line = self.line_starts.partition_point(|start| *start <= offset);
        let before = &self.text.as_bytes()[self.line_starts[line - 1]..offset];
        // Octets that continue a character (RFC 3629 3) are no columns of their own.
        let column = before.iter().filter(|b| **b & 0xc0 != 0x80).count() + 1;
        Problem { file: self.file.clone(), line, column, what }
    }

    /// A problem at a line and column, both from 1.
    pub(super) fn problem_in_line(&self, line: usize, column: usize, what: String) -> Problem {
        Problem { file: self.file.clone(), line, column, what }
    }
}

/// Everything that is wrong so far: a reader goes on after each problem, so that one run shows
/// all of them.
#[derive(Debug, Default)]
pub(super) struct Report {
    problems: RefCell<Vec<Problem>>,
}

impl Report {
    /// Adds one problem.
    pub(super) fn add(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    /// All problems in the order of file, line and column; one for each place.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort();
        problems.dedup();
        problems
    }
}

/// Text from a file, in quotes, escaped and cut for one line.
pub(super) fn quote(foreign: &str) -> String {
    format!("\"{}\"", text::escape(foreign.as_bytes(), QUOTE_OCTETS_MAX))
}

/// The name of `known` with the fewest letters to change, add, remove or swap.
pub(super) fn nearest<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    known.into_iter().min_by_key(|candidate| edit_distance(name, candidate))
}

/// Changes that turn `a` into `b`: one letter changed, added or removed, or two neighbours
/// swapped (the restricted distance of Damerau and Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(NAME_CHARS_MAX).collect();
    let b: Vec<char> = b.chars().take(NAME_CHARS_MAX).collect();
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = changed.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(rows[i - 2][j - 2] + 1);
            }
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_columns_count_from_one_and_in_characters() {
        let source = Source::new(Path::new("f"), "ab\n\u{e9}x\n\nlast".to_owned());
        let place = |offset| {
            let p = source.problem(offset, String::new());
            (p.line, p.column)
        };
        assert_eq!(place(0), (1, 1));
        assert_eq!(place(1), (1, 2));
        assert_eq!(place(3), (2, 1));
        assert_eq!(place(5), (2, 2));
        assert_eq!(place(7), (3, 1));
        assert_eq!(place(10), (4, 3));
        assert_eq!(place(9999), (4, 5));
    }

    #[test]
    fn distances() {
        for (a, b, distance) in [
            ("", "", 0),
            ("abc", "", 3),
            ("spool", "spool", 0),
            ("spol", "spool", 1),
            ("sopol", "spool", 1),
            ("max_retrys", "max_retries", 2),
        ] {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
            assert_eq!(edit_distance(b, a), distance, "{b} {a}");
        }
        assert_eq!(nearest("hostnam", ["spool", "hostname", "shards"]), Some("hostname"));
        assert_eq!(nearest("x", []), None);
    }
}
