//! The machine that keeps the house in order: reads the source and reports what breaks its laws.
//!
//! Owns: the law of imports, the purity of the pure folders, sizes, and banned words. Each rule
//! is a pure function over sources; each has planted violations that it must report, so that a
//! rule that sees nothing is seen.
//!
//! Diagnostics: one line per finding, `path:line: rule: what to do`.

#[path = "tidy/laws.rs"]
mod laws;
#[path = "tidy/planted.rs"]
mod planted;
#[path = "tidy/sizes.rs"]
mod sizes;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/tree.rs"]
mod tree;
#[path = "tidy/words.rs"]
mod words;

use std::fmt;
use std::path::Path;

use source::Source;

/// Something that breaks a law.
#[derive(Debug)]
struct Finding {
    path: String,
    line: usize,
    rule: &'static str,
    remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.path, self.line, self.rule, self.remedy)
    }
}

/// A rule over one file.
type FileRule = (&'static str, fn(&Source) -> Vec<Finding>);

/// A rule over all files.
type TreeRule = (&'static str, fn(&[Source]) -> Vec<Finding>);

const FILE_RULES: &[FileRule] = &[
    ("imports", laws::imports),
    ("purity", laws::purity),
    ("unsafe", laws::unsafe_code),
    ("runtime", laws::runtime),
    ("acceptance", laws::acceptance),
    ("line-length", sizes::line_length),
    ("function-length", sizes::function_length),
    ("file-length", sizes::file_length),
    ("man-page", words::man_page),
    ("unfinished", words::unfinished),
    ("unwrap", words::unwrap),
    ("print-macro", words::print_macro),
    ("file-table", words::file_table),
    ("ascii", words::ascii),
];

const TREE_RULES: &[TreeRule] = &[("dead-file", tree::dead_file), ("one-proof", tree::one_proof)];

fn findings(sources: &[Source]) -> Vec<Finding> {
    let of_files = FILE_RULES.iter().flat_map(|(_, rule)| sources.iter().flat_map(rule));
    let of_tree = TREE_RULES.iter().flat_map(|(_, rule)| rule(sources));
    of_files.chain(of_tree).collect()
}

#[test]
fn the_house_is_in_order() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    for folder in ["src", "tests", "benches"] {
        source::read_folder(root, folder, &mut sources);
    }
    assert!(sources.len() > 20, "the source tree was not found");
    let found: Vec<String> = findings(&sources).iter().map(Finding::to_string).collect();
    assert!(found.is_empty(), "{} findings\n{}", found.len(), found.join("\n"));
}
