//! Laws that only the whole tree can break.

use std::collections::{HashMap, HashSet};

use super::Finding;
use super::source::{Source, tokens};

/// Every file of the engine is reached by `mod` from a root; another one is not even compiled.
pub(crate) fn dead_file(sources: &[Source]) -> Vec<Finding> {
    let by_path: HashMap<&str, &Source> = sources.iter().map(|s| (s.path.as_str(), s)).collect();
    let mut reached = HashSet::new();
    let mut open = vec!["src/lib.rs".to_owned(), "src/main.rs".to_owned()];
    while let Some(path) = open.pop() {
        let Some(source) = by_path.get(path.as_str()) else { continue };
        if reached.insert(path) {
            open.extend(declared(source));
        }
    }
    let dead = sources.iter().filter(|s| s.is_engine() && !reached.contains(&s.path));
    let remedy = "no mod declaration leads here: declare it or delete it";
    dead.map(|source| source.finding(0, "dead-file", remedy)).collect()
}

/// The places where the modules may stand that a file declares.
fn declared(source: &Source) -> Vec<String> {
    let (parent, name) = source.path.rsplit_once('/').unwrap_or(("", &source.path));
    let below = match name {
        "lib.rs" | "main.rs" | "mod.rs" => parent.to_owned(),
        name => format!("{parent}/{}", name.trim_end_matches(".rs")),
    };
    let tokens = tokens(&source.code);
    let mut places = Vec::new();
    for window in tokens.windows(3) {
        let [word, name, end] = window else { continue };
        if word.1 == "mod" && end.1 == ";" {
            places.push(format!("{below}/{}.rs", name.1));
            places.push(format!("{below}/{}/mod.rs", name.1));
        }
    }
    let named = source.raw.iter().filter_map(|line| {
        let path = line.trim().strip_prefix("#[path = \"")?.strip_suffix("\"]")?;
        Some(format!("{parent}/{path}"))
    });
    places.extend(named);
    places
}

/// One type proves that a message is safe. A second one would be a second way to say 250.
pub(crate) fn one_proof(sources: &[Source]) -> Vec<Finding> {
    let mut places = Vec::new();
    for source in sources.iter().filter(|source| source.is_engine()) {
        for window in tokens(&source.code).windows(2) {
            let [name, next] = window else { continue };
            if name.1 == "ProofOfSafety" && next.1 == "for" && !source.test[name.0] {
                places.push((source, name.0));
            }
        }
    }
    let remedy = "ProofOfSafety has its one impl already: make that type prove it";
    let surplus = places.iter().skip(1);
    surplus.map(|(source, line)| source.finding(*line, "one-proof", remedy)).collect()
}
