//! A source file as the rules see it: its lines, its code without comments and strings, the
//! paths that it names, and which of its lines are tests.

use std::fs;
use std::path::Path;

/// One file.
pub(crate) struct Source {
    /// Its path from the root, with `/`.
    pub(crate) path: String,
    /// Its lines as they are.
    pub(crate) raw: Vec<String>,
    /// Its lines with the content of strings and characters blanked.
    pub(crate) prose: Vec<String>,
    /// Its lines with strings, characters and comments blanked.
    pub(crate) code: Vec<String>,
    /// Which lines are compiled for tests only.
    pub(crate) test: Vec<bool>,
}

/// A path in the code, such as `crate::mail::Mid`, and the place where it begins.
pub(crate) struct Named {
    /// From 0.
    pub(crate) line: usize,
    /// Its parts.
    pub(crate) parts: Vec<String>,
}

/// Adds every Rust file below `folder`, in a fixed order.
pub(crate) fn read_folder(root: &Path, folder: &str, sources: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(root.join(folder)) else { return };
    let names = entries.map(|entry| entry.expect("a readable folder").file_name());
    let mut names: Vec<String> =
        names.map(|name| name.into_string().expect("a name in UTF-8")).collect();
    names.sort();
    for name in names {
        let path = format!("{folder}/{name}");
        if root.join(&path).is_dir() {
            read_folder(root, &path, sources);
        } else if path.ends_with(".rs") {
            let text = fs::read_to_string(root.join(&path)).expect("source in UTF-8");
            sources.push(Source::new(&path, &text));
        }
    }
}

impl Source {
    /// Reads `text` as the file `path`.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let (prose, code) = mask(text);
        let lines = |text: &str| text.split('\n').map(str::to_owned).collect::<Vec<_>>();
        let mut raw = lines(text);
        if raw.last().is_some_and(String::is_empty) {
            raw.pop();
        }
        let (prose, code) = (lines(&prose), lines(&code));
        let test = test_lines(path, &code);
        Self { path: path.to_owned(), raw, prose, code, test }
    }

    /// Is it part of the engine, and not of its tests and benches?
    pub(crate) fn is_engine(&self) -> bool {
        self.path.starts_with("src/")
    }

    /// The folder of `src` or the file in it that owns this file: `mail`, `limits`, `main`.
    pub(crate) fn folder(&self) -> Option<&str> {
        let below = self.path.strip_prefix("src/")?;
        Some(below.split('/').next()?.trim_end_matches(".rs"))
    }

    /// The names of its module below the crate.
    pub(crate) fn module(&self) -> Vec<&str> {
        let below = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        let below = below.trim_end_matches("/mod");
        if below == "lib" || below == "main" { vec![] } else { below.split('/').collect() }
    }

    /// Every path in the code, with groups in braces taken apart.
    pub(crate) fn named(&self) -> Vec<Named> {
        let tokens = tokens(&self.code);
        let mut found = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            if is_word(&tokens[at].1) {
                at = path_at(&tokens, at, &[], &mut found);
            } else {
                at += 1;
            }
        }
        found
    }
}

/// The words and signs of the code with their lines; `::` is one sign.
pub(crate) fn tokens(code: &[String]) -> Vec<(usize, String)> {
    let mut tokens = Vec::new();
    for (line, text) in code.iter().enumerate() {
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            let word = rest.find(|c: char| !is_word_char(c)).unwrap_or(rest.len());
            let length = match word {
                0 if rest.starts_with("::") => 2,
                0 => first.len_utf8(),
                word => word,
            };
            tokens.push((line, rest[..length].to_owned()));
            rest = rest[length..].trim_start();
        }
    }
    tokens
}

fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn is_word(token: &str) -> bool {
    token.starts_with(is_word_char)
}

/// Reads the path at `at`, after the parts of the group around it; returns the place behind it.
fn path_at(
    tokens: &[(usize, String)],
    mut at: usize,
    before: &[String],
    found: &mut Vec<Named>,
) -> usize {
    let line = tokens[at].0;
    let mut parts = before.to_vec();
    loop {
        match tokens.get(at).map(|(_, token)| token.as_str()) {
            Some("{") => return group_at(tokens, at + 1, &parts, found),
            Some(token) if is_word(token) || token == "*" => parts.push(token.to_owned()),
            _ => break,
        }
        at += 1;
        if tokens.get(at).is_none_or(|(_, token)| token != "::") {
            break;
        }
        at += 1;
    }
    found.push(Named { line, parts });
    at
}

fn group_at(
    tokens: &[(usize, String)],
    mut at: usize,
    before: &[String],
    found: &mut Vec<Named>,
) -> usize {
    while let Some((_, token)) = tokens.get(at) {
        match token.as_str() {
            "}" => return at + 1,
            token if is_word(token) || token == "*" => at = path_at(tokens, at, before, found),
            _ => at += 1,
        }
    }
    at
}

/// Blanks strings and characters (first result), and comments too (second result). Line ends
/// stay, so that places stay.
fn mask(text: &str) -> (String, String) {
    let chars: Vec<char> = text.chars().collect();
    let (mut prose, mut code) = (String::new(), String::new());
    let mut at = 0;
    while at < chars.len() {
        let (end, keep_prose, keep_code) = piece(&chars, at);
        for c in &chars[at..end] {
            let kept = |keep: bool| if keep || *c == '\n' { *c } else { ' ' };
            prose.push(kept(keep_prose));
            code.push(kept(keep_code));
        }
        at = end;
    }
    (prose, code)
}

/// The end of the piece that begins at `at`, and whether it is prose and code.
fn piece(chars: &[char], at: usize) -> (usize, bool, bool) {
    let rest = &chars[at..];
    if rest.starts_with(&['/', '/']) {
        let length = rest.iter().position(|c| *c == '\n').unwrap_or(rest.len());
        return (at + length, true, false);
    }
    if rest.starts_with(&['/', '*']) {
        return (at + block_comment(rest), true, false);
    }
    if at > 0 && is_word_char(chars[at - 1]) {
        return (at + 1, true, true);
    }
    let prefix = rest.iter().take_while(|c| matches!(c, 'b' | 'c' | 'r')).count().min(2);
    let raw = prefix > 0 && rest[prefix - 1] == 'r';
    let hashes = rest[prefix..].iter().take_while(|c| **c == '#').count();
    if raw && rest.get(prefix + hashes) == Some(&'"') {
        let open = prefix + hashes + 1;
        let close: Vec<char> = ['"'].into_iter().chain(vec!['#'; hashes]).collect();
        let inner = rest[open..].windows(close.len()).position(|w| w == close);
        return (at + inner.map_or(rest.len(), |n| open + n + close.len()), false, false);
    }
    match rest.get(prefix) {
        Some('"') => (at + prefix + quoted(&rest[prefix..], '"'), false, false),
        Some('\'') if is_character(&rest[prefix..]) => {
            (at + prefix + quoted(&rest[prefix..], '\''), false, false)
        }
        _ => (at + 1, true, true),
    }
}

/// Tells a character from a lifetime.
fn is_character(rest: &[char]) -> bool {
    rest.get(1) == Some(&'\\') || rest.get(2) == Some(&'\'')
}

fn quoted(rest: &[char], mark: char) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            '\\' => at += 2,
            c if c == mark => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (1, 2);
    while at < rest.len() && depth > 0 {
        if rest[at..].starts_with(&['/', '*']) {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with(&['*', '/']) {
            (depth, at) = (depth - 1, at + 2);
        } else {
            at += 1;
        }
    }
    at.min(rest.len())
}

/// The lines of items under `#[cfg(test)]`; all lines of a file of tests.
fn test_lines(path: &str, code: &[String]) -> Vec<bool> {
    let of_tests = !path.starts_with("src/") || path.ends_with("tests.rs");
    let mut test = vec![of_tests || path.contains("/tests/"); code.len()];
    let tokens = tokens(code);
    for at in 0..tokens.len() {
        let attribute: String = tokens[at..].iter().take(8).map(|(_, t)| t.as_str()).collect();
        let all = attribute.starts_with("#[cfg(all(test");
        if attribute.starts_with("#[cfg(test)]") || all {
            let last = item_end(&tokens, at + 7);
            test[tokens[at].0..=last].fill(true);
        }
    }
    test
}

/// The line on which the item ends that begins at `at`.
fn item_end(tokens: &[(usize, String)], at: usize) -> usize {
    let mut depth = 0_usize;
    for (line, token) in &tokens[at.min(tokens.len())..] {
        match token.as_str() {
            "{" => depth += 1,
            "}" if depth <= 1 => return *line,
            "}" => depth -= 1,
            ";" if depth == 0 => return *line,
            _ => {}
        }
    }
    tokens.last().map_or(0, |(line, _)| *line)
}
