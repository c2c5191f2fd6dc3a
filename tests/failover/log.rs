//! The mail log of one message, with its ids put in a form that every run shares.

/// The lines of the message for `domain`, from `queued for delivery` on: `M` is its MID, `R` that
/// of a report on it, `D0`, `D1` its connections as they come, `H0`, `H1` its hosts by `ports`.
pub(crate) fn of_domain(lines: &[String], domain: &str, ports: &[u16]) -> Vec<String> {
    let to = format!("@{domain}>");
    let first = lines.iter().find(|line| line.contains(" To: <") && line.ends_with(&to));
    let mid = first.and_then(|line| line.split(' ').nth(1)).expect("the message was taken");
    let (mut dcids, mut seen) = (Vec::new(), Vec::new());
    let mut queued = false;
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let of_mid = words.windows(2).any(|pair| pair[0] == "MID" && pair[1] == mid);
        queued |= of_mid && line.ends_with("queued for delivery");
        let opens = line.starts_with("New SMTP DCID ") && host(&words, ports).is_some();
        let fails = line.contains(&format!(" domain: {domain} "));
        if !queued || !(of_mid || opens || fails) {
            continue;
        }
        seen.push(normal(&words, mid, &mut dcids, ports));
    }
    seen.remove(0);
    seen
}

fn host(words: &[&str], ports: &[u16]) -> Option<usize> {
    let at = words.iter().position(|w| w.trim_end_matches(':') == "port")?;
    let port: u16 = words.get(at + 1)?.parse().ok()?;
    ports.iter().position(|known| *known == port)
}

fn normal(words: &[&str], mid: &str, dcids: &mut Vec<String>, ports: &[u16]) -> String {
    let mut out: Vec<String> = Vec::new();
    for (i, word) in words.iter().enumerate() {
        let before = if i == 0 { "" } else { words[i - 1] };
        out.push(match before {
            "MID" if *word == mid => "M".into(),
            "MID" => "R".into(),
            "DCID" => {
                let known = dcids.iter().position(|dcid| dcid == word).unwrap_or_else(|| {
                    dcids.push((*word).to_owned());
                    dcids.len() - 1
                });
                format!("D{known}")
            }
            "port" | "port:" => host(words, ports).map_or((*word).into(), |h| format!("H{h}")),
            _ => (*word).to_owned(),
        });
    }
    let line = out.join(" ");
    // How a peer's close shows depends on what it had read.
    let gone = ["connection closed by the host", "Connection reset by peer", "Broken pipe"];
    let line = gone.iter().fold(line, |line, how| line.replace(how, "GONE"));
    match (line.find("pending till "), line.rfind(" [")) {
        (Some(till), Some(profile)) => {
            format!("{}pending till TIME{}", &line[..till], &line[profile..])
        }
        _ => line,
    }
}

/// Each connection that stood begins with its first line and is closed, once, by its last.
pub(crate) fn assert_connections_close(lines: &[String]) {
    for open in lines.iter().filter_map(|line| line.strip_prefix("New SMTP DCID ")) {
        let dcid = open.split(' ').next().unwrap();
        let of_dcid = |line: &&String| {
            let line = line.replace(':', "");
            let words: Vec<&str> = line.split(' ').collect();
            words.windows(2).any(|pair| pair[0] == "DCID" && pair[1] == dcid)
        };
        // What became of a message may come later than the end of its connection.
        let begins = |line: &&String| !line.contains(" MID ") || line.starts_with("Delivery start");
        let own: Vec<&String> = lines.iter().filter(of_dcid).filter(begins).collect();
        let closes = own.iter().filter(|line| line.ends_with(" close")).count();
        assert_eq!(closes, 1, "{own:#?}");
        assert!(own[0].starts_with("New SMTP DCID "), "{own:#?}");
        assert!(own.last().unwrap().ends_with(" close"), "{own:#?}");
    }
}
