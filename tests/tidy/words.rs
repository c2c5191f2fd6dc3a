//! Words that may not stand in the source, and one that must.

use super::Finding;
use super::source::{Source, tokens};

/// Every file of the engine opens with its man page.
pub(crate) fn man_page(source: &Source) -> Vec<Finding> {
    let opens = source.raw.first().is_some_and(|line| line.starts_with("//!"));
    let remedy = "open the file with //!: what it owns, what it never does, its diagnostics";
    let bare = source.is_engine() && !opens;
    bare.then(|| source.finding(0, "man-page", remedy)).into_iter().collect()
}

/// Nothing unfinished: no marks for later, no stubs, no tests that do not run.
pub(crate) fn unfinished(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    let tokens = tokens(&source.code);
    for (at, (line, token)) in tokens.iter().enumerate() {
        let next = tokens.get(at + 1).map_or("", |(_, token)| token);
        let stub = ["todo", "unimplemented", "dbg"].contains(&token.as_str()) && next == "!";
        let ignored = at > 1 && token == "ignore" && tokens[at - 1].1 == "[";
        if stub || (ignored && tokens[at - 2].1 == "#") {
            let remedy = format!("{token} may not stay: finish it or take it out");
            found.push(source.finding(*line, "unfinished", remedy));
        }
    }
    for (line, text) in source.prose.iter().enumerate() {
        let mut words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
        if let Some(mark) = words.find(|word| ["TODO", "FIXME"].contains(word)) {
            let remedy = format!("{mark} may not stay: do it or leave it out");
            found.push(source.finding(line, "unfinished", remedy));
        }
    }
    found
}

/// Outside tests, `unwrap` hides the reason why it cannot fail.
pub(crate) fn unwrap(source: &Source) -> Vec<Finding> {
    let tokens = tokens(&source.code);
    let mut found = Vec::new();
    for window in tokens.windows(4) {
        let [dot, word, open, close] = window else { continue };
        let call = (dot.1.as_str(), word.1.as_str(), open.1.as_str(), close.1.as_str());
        if call == (".", "unwrap", "(", ")") && !source.test[word.0] {
            let remedy = "handle it, or say by expect() why it cannot fail";
            found.push(source.finding(word.0, "unwrap", remedy));
        }
    }
    found
}

/// Outside tests, the macros of the standard library end the process when the reader of a pipe is
/// gone.
pub(crate) fn print_macro(source: &Source) -> Vec<Finding> {
    let tokens = tokens(&source.code);
    let mut found = Vec::new();
    for pair in tokens.windows(2) {
        let [(line, word), (_, mark)] = pair else { continue };
        let macros = ["print", "println", "eprint", "eprintln"];
        let prints = macros.contains(&word.as_str()) && mark == "!";
        if prints && source.is_engine() && !source.test[*line] {
            let remedy = "it panics when nobody reads: control::terminal::tell, or cli::print";
            found.push(source.finding(*line, "print-macro", remedy));
        }
    }
    found
}

/// A table of files in a man page names every file of its folder.
pub(crate) fn file_table(source: &Source) -> Vec<Finding> {
    let page = || source.raw.iter().filter(|line| line.starts_with("//! |"));
    if !page().any(|line| line.starts_with("//! | file |")) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (line, text) in source.raw.iter().enumerate() {
        let module = text.trim_start_matches("pub ").strip_prefix("mod ");
        let Some(name) = module.and_then(|rest| rest.strip_suffix(';')) else { continue };
        let names = [format!("`{name}`"), format!("mod@{name}`")];
        let told = page().any(|row| names.iter().any(|name| row.contains(name)));
        if !told && !source.test[line] {
            let remedy = format!("name `{name}` in the table of files above");
            found.push(source.finding(line, "file-table", remedy));
        }
    }
    found
}

/// The source is ASCII; the strings of tests are data and may be anything.
pub(crate) fn ascii(source: &Source) -> Vec<Finding> {
    let lines = source.raw.iter().zip(&source.prose).zip(&source.test).enumerate();
    let foreign = lines.filter(|(_, ((raw, prose), test))| {
        let text = if **test { prose } else { raw };
        !text.is_ascii()
    });
    let remedy = "write it in ASCII, a character in a string as \\u{..}";
    foreign.map(|(line, _)| source.finding(line, "ascii", remedy)).collect()
}
