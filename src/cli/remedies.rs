//! Every `ringspan …` that a message tells somebody to run is a command that there is.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};

use super::options::Options;

/// The sources that have messages.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "tests") {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|end| end == "rs")
            && !path.ends_with("tests.rs")
            && !path.ends_with("remedies.rs")
        {
            found.push(path);
        }
    }
}

/// Commands in a line of source: behind a word that announces one, up to what ends it.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut found = vec![];
    let is_comment = line.trim_start().starts_with("//");
    for (at, _) in line.match_indices("ringspan ").filter(|_| !is_comment) {
        let before = &line[..at];
        let announced = ["run ", "see ", "(", "`", "or ", ": "].iter().any(|word| before.ends_with(word));
        if !announced {
            continue;
        }
        let rest = &line[at + "ringspan ".len()..];
        // Values are put in by the program: whatever they are, they are one word.
        let (mut words, mut word, mut depth) = (vec![], String::new(), 0);
        for letter in rest.chars() {
            match letter {
                '{' => depth += 1,
                '}' => {
                    depth -= 1;
                    word.push('1');
                }
                _ if depth > 0 => {}
                ' ' => words.push(std::mem::take(&mut word)),
                ')' | ';' | ',' | '"' | '`' | '\'' | '\\' => break,
                ':' if word.is_empty() || !word.starts_with('/') => break,
                letter => word.push(letter),
            }
        }
        words.push(word);
        found.push(words.into_iter().filter(|word| !word.is_empty()).collect());
    }
    found
}

/// What is wrong with it. Only what begins with a subcommand, or could be meant for one, is looked at.
fn wrong(mut command: Command, words: &[String]) -> Option<String> {
    let mut words = words.iter().peekable();
    if words.peek().is_none_or(|word| command.find_subcommand(word.as_str()).is_none()) {
        // Prose: the daemon's name, and what it does.
        return None;
    }
    while let Some(next) = words.peek().and_then(|word| command.find_subcommand(word.as_str()).cloned()) {
        command = next;
        words.next();
    }
    if command.get_subcommands().next().is_some() {
        return Some(format!("no such command behind {}", command.get_name()));
    }
    // Named as a whole, without any value: where to look.
    words.peek()?;
    let mut positionals = command.get_positionals().filter(|one| one.is_required_set()).count();
    while let Some(word) = words.next() {
        if let Some(name) = word.strip_prefix("--") {
            let Some(argument) = command.get_arguments().find(|one| one.get_long() == Some(name)) else {
                return Some(format!("{} has no --{name}", command.get_name()));
            };
            if argument.get_action().takes_values() {
                words.next();
            }
        } else if word.chars().all(|letter| letter.is_ascii_lowercase()) && positionals == 0 {
            // Prose goes on.
            return None;
        } else {
            positionals = positionals.saturating_sub(1);
        }
    }
    (positionals > 0).then(|| format!("{} needs {positionals} values more", command.get_name()))
}

#[test]
fn every_command_in_a_message_is_one() {
    let mut files = vec![];
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let mut cli = Options::command();
    cli.build();
    let (mut seen, mut bad) = (0, vec![]);
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for (number, line) in text.lines().enumerate() {
            for words in commands(line) {
                seen += 1;
                if let Some(why) = wrong(cli.clone(), &words) {
                    bad.push(format!("{}:{}: ringspan {}: {why}", file.display(), number + 1, words.join(" ")));
                }
            }
        }
    }
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(seen > 50, "{seen} commands found: does this test still see them?");
}
