//! Commands of ours that messages and remedies name exist: the grammar itself is asked.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory, Parser};

use super::options::Options;

/// Whether the command line takes this command: each `ringspan ...` of a line of shell.
pub(crate) fn parses(line: &str) -> Result<(), String> {
    for command in line.split(['|', '&', ';', '>']) {
        let words: Vec<&str> = command.split_whitespace().skip_while(|word| *word == "sudo").collect();
        if words.first() == Some(&"ringspan") {
            Options::try_parse_from(&words).map_err(|error| format!("{command}: {error}"))?;
        }
    }
    Ok(())
}

/// What follows the name in prose.
const PROSE: [&str; 20] = [
    "(form", "--lib", "adds", "brings", "can", "control", "daemon", "does", "had", "has", "installs", "is", "keeps",
    "knows", "mirrors", "needs", "offers", "owns", "software", "uses",
];

/// The command that a sentence names, as far as its grammar can be told from its values: commands and options.
fn named(words: &[String], root: &Command) -> Result<(), String> {
    let mut command = root;
    let mut words = words.iter();
    while command.has_subcommands() {
        let word = words.next().map_or("", String::as_str);
        command =
            command.find_subcommand(word).ok_or_else(|| format!("{} has no command {word:?}", command.get_name()))?;
    }
    let known = |flag: &str| {
        let all = command.get_arguments().chain(root.get_arguments());
        flag == "help" || all.filter_map(clap::Arg::get_long).any(|long| long == flag)
    };
    for word in words {
        if let Some(flag) = word.strip_prefix("--").and_then(|flag| flag.split('=').next())
            && !flag.is_empty()
            && !known(flag)
        {
            return Err(format!("{} has no option --{flag}", command.get_name()));
        }
    }
    Ok(())
}

/// Texts in quotes of a source file, but those of its tests.
fn literals(source: &str) -> Vec<String> {
    let source = source.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or(source);
    let mut found = Vec::new();
    for line in source.lines().filter(|line| !line.trim_start().starts_with("//")) {
        let mut rest = line;
        while let Some(begin) = rest.find('"') {
            let text = &rest[begin + 1..];
            let end = text.char_indices().find(|(at, letter)| *letter == '"' && !text[..*at].ends_with('\\'));
            let Some((end, _)) = end else { break };
            found.push(text[..end].to_owned());
            rest = &text[end + 1..];
        }
    }
    found
}

/// The words after each `ringspan `, up to the end of the clause. What begins with no command of ours, and is not said to be one, is prose.
fn commands(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("ringspan ") {
        // Of a longer name, or of a path.
        if text[..at].ends_with(|letter: char| letter.is_alphanumeric() || "/-_.".contains(letter)) {
            continue;
        }
        let mut words = Vec::new();
        for word in text[at + "ringspan ".len()..].split(' ') {
            let plain = word.trim_end_matches([',', ':', ';', ')', '`', '.', '\'', '"', '\\']);
            words.push(plain.trim_start_matches('`').to_owned());
            if plain != word {
                break;
            }
        }
        let said = ["run ", "see ", "`", "("].iter().any(|before| text[..at].ends_with(before));
        let is_ours = |word: &String| Options::command().find_subcommand(word).is_some();
        if said || words.first().is_some_and(is_ours) {
            found.push(words);
        }
    }
    found
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "tests" {
            sources(&path, found);
        } else if name.ends_with(".rs") && name != "tests.rs" && name != "advice.rs" {
            found.push(path);
        }
    }
}

#[test]
fn each_command_that_a_message_names_exists() {
    let root = Options::command();
    let mut files = Vec::new();
    for folder in ["src", "dataplane/src", "dataplane/protocol/src"] {
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut files);
    }
    let (mut count, mut wrong) = (0, Vec::new());
    for file in &files {
        for words in literals(&fs::read_to_string(file).unwrap()).iter().flat_map(|text| commands(text)) {
            if words.first().is_none_or(|word| word.is_empty() || PROSE.contains(&word.as_str())) {
                continue;
            }
            count += 1;
            if let Err(why) = named(&words, &root) {
                wrong.push(format!("{}: ringspan {}: {why}", file.display(), words.join(" ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count > 40, "only {count} commands were found: does the search still work?");
}

#[test]
fn a_command_that_does_not_exist_is_noticed() {
    let root = Options::command();
    for (text, good) in [
        ("see ringspan lane list", true),
        ("run `ringspan vf enable {name} 0`, or say --disturb", true),
        ("ringspan lane lists", false),
        ("ringspan vf enable eth0 4 --force", false),
        ("(ringspan port)", false),
    ] {
        let words = commands(text);
        assert_eq!(words.len(), 1, "{text}");
        assert_eq!(named(&words[0], &root).is_ok(), good, "{text}: {words:?}");
    }
    assert!(parses("ringspan vf enable eth0 many").is_err());
    assert!(parses("journalctl -k > /tmp/x && sudo ringspan doctor --kernel-log /tmp/x").is_ok());
}
