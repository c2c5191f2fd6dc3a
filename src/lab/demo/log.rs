//! The mail log as it grows: read behind its writers, and the few lines that a scene shows.
//!
//! Owns: the reading position and the choice of lines. Never: the lines themselves.
//!
//! Limits: of each scene the first [`KEPT_MAX`] lines are kept.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Lines of a scene that are kept for its checks.
pub(super) const KEPT_MAX: usize = 2_000;

/// Which lines a scene shows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Choice {
    /// Of the scene's first message: lines that hold one of these, and at most so many.
    pub(super) first_message: (&'static [&'static str], usize),
    /// Of everything: lines that hold one of these, and at most so many.
    pub(super) all: (&'static [&'static str], usize),
}

/// A reader of the growing log.
#[derive(Debug)]
pub(super) struct LogTail {
    path: PathBuf,
    file: Option<File>,
    /// The beginning of a line whose end is not written yet.
    rest: Vec<u8>,
    choice: Choice,
    shown: (usize, usize),
    /// The scene's first message, as its log lines name it.
    mid: Option<String>,
    kept: Vec<String>,
}

impl LogTail {
    /// Reads the log at `path` from its beginning, once it exists.
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            file: None,
            rest: Vec::new(),
            choice: Choice::default(),
            shown: (0, 0),
            mid: None,
            kept: Vec::new(),
        }
    }

    /// A new scene begins: other lines are shown, none are kept.
    pub(super) fn begin(&mut self, choice: Choice) {
        self.choice = choice;
        self.shown = (0, 0);
        self.mid = None;
        self.kept.clear();
    }

    /// Reads what was written since the last call; gives the lines to be shown.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(super) fn read(&mut self) -> io::Result<Vec<String>> {
        if self.file.is_none() {
            match File::open(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            }
        }
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut self.rest)?;
        }
        let whole = memchr::memrchr(b'\n', &self.rest).map_or(0, |end| end + 1);
        let after = self.rest.split_off(whole);
        let lines = std::mem::replace(&mut self.rest, after);
        let lines = String::from_utf8_lossy(&lines);
        Ok(lines.lines().filter(|line| self.take(line)).map(str::to_owned).collect())
    }

    /// The bodies of the scene's first lines, without date and level.
    pub(super) fn kept(&self) -> impl Iterator<Item = &str> {
        self.kept.iter().map(|line| body(line))
    }

    /// Keeps a line; is it shown?
    fn take(&mut self, line: &str) -> bool {
        if self.kept.len() < KEPT_MAX {
            self.kept.push(line.to_owned());
        }
        let body = body(line);
        let start = body.strip_prefix("Start MID ").and_then(|rest| rest.split(' ').next());
        if let (None, Some(mid)) = (&self.mid, start) {
            self.mid = Some(format!(" MID {mid} "));
        }
        let holds = |words: &[&str]| words.iter().any(|word| body.contains(word));
        let padded = format!(" {body} ");
        let of_first = self.mid.as_ref().is_some_and(|mid| padded.contains(mid.as_str()));
        let (words, most) = self.choice.first_message;
        if of_first && holds(words) && self.shown.0 < most {
            self.shown.0 += 1;
            return true;
        }
        let (words, most) = self.choice.all;
        if holds(words) && self.shown.1 < most {
            self.shown.1 += 1;
            return true;
        }
        false
    }
}

/// A line without its date and level.
pub(super) fn body(line: &str) -> &str {
    line.split_once("Info: ").map_or(line, |(_, body)| body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scene_shows_its_choice_and_keeps_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut tail = LogTail::new(&path);
        assert!(tail.read().unwrap().is_empty(), "no log yet");
        tail.begin(Choice {
            first_message: (&["Start", "queued"], 9),
            all: (&["Connection Error"], 1),
        });
        let line = |body: &str| format!("Mon Mar  8 09:15:07 2027 Info: {body}\n");
        let text = [
            line("Start MID 7 ICID 1"),
            line("Start MID 77 ICID 1"),
            line("MID 77 queued for delivery"),
            line("Connection Error: DCID 1"),
            line("Connection Error: DCID 2"),
            line("MID 7 queued for delivery"),
        ]
        .concat();
        let (head, tail_end) = text.split_at(text.len() - 9);
        std::fs::write(&path, head).unwrap();
        let shown = tail.read().unwrap();
        let shown: Vec<&str> = shown.iter().map(|line| body(line)).collect();
        assert_eq!(shown, ["Start MID 7 ICID 1", "Connection Error: DCID 1"]);
        std::fs::write(&path, format!("{head}{tail_end}")).unwrap();
        let shown = tail.read().unwrap();
        assert_eq!(body(&shown[0]), "MID 7 queued for delivery");
        assert_eq!(tail.kept().count(), 6);
    }
}
