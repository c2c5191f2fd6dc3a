//! Small by law: lines, functions and files.

use super::Finding;
use super::source::{Source, tokens};

const LINE_COLUMNS_MAX: usize = 100;
const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 600;

/// A line fits a window beside another one. A row of a table in a comment cannot be broken.
pub(crate) fn line_length(source: &Source) -> Vec<Finding> {
    let long = source.raw.iter().enumerate().filter_map(|(line, text)| {
        let row = ["//! |", "/// |"].iter().any(|start| text.trim_start().starts_with(start));
        let columns = if row { 0 } else { text.chars().count() };
        let remedy = format!("{columns} columns, at most {LINE_COLUMNS_MAX}: break it");
        (columns > LINE_COLUMNS_MAX).then(|| source.finding(line, "line-length", remedy))
    });
    long.collect()
}

/// A function fits a screen. Blank lines and comments do not count.
pub(crate) fn function_length(source: &Source) -> Vec<Finding> {
    let tokens = tokens(&source.code);
    let mut found = Vec::new();
    for (at, (line, token)) in tokens.iter().enumerate() {
        if token != "fn" {
            continue;
        }
        let Some((open, close)) = body(&tokens, at) else { continue };
        let inside = source.code.iter().take(close).skip(open + 1);
        let lines = inside.filter(|line| !line.trim().is_empty()).count();
        if lines > FUNCTION_LINES_MAX {
            let remedy = format!("{lines} lines, at most {FUNCTION_LINES_MAX}: split by meaning");
            found.push(source.finding(*line, "function-length", remedy));
        }
    }
    found
}

/// The lines of the braces around the body of the function at `at`; `None` without a body.
fn body(tokens: &[(usize, String)], at: usize) -> Option<(usize, usize)> {
    let (mut round, mut curly, mut open) = (0_i32, 0_i32, None);
    for (line, token) in &tokens[at..] {
        match token.as_str() {
            "(" | "[" => round += 1,
            ")" | "]" => round -= 1,
            ";" if round == 0 && curly == 0 => return None,
            "{" => {
                open.get_or_insert(*line);
                curly += 1;
            }
            "}" if curly == 1 => return open.map(|open| (open, *line)),
            "}" => curly -= 1,
            _ => {}
        }
        if curly < 0 || (round < 0 && curly == 0) {
            return None;
        }
    }
    None
}

/// A file is one idea. Its tests do not count.
pub(crate) fn file_length(source: &Source) -> Vec<Finding> {
    let lines = source.raw.iter().zip(&source.test).filter(|(_, test)| !**test).count();
    let remedy = format!("{lines} lines, at most {FILE_LINES_MAX} without tests: split by meaning");
    let long = lines > FILE_LINES_MAX;
    long.then(|| source.finding(0, "file-length", remedy)).into_iter().collect()
}
