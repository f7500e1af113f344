//! Taking out of a program's output what differs between two runs of anything: names, versions, times, paths.

/// What stands for the program's own name.
pub const NAME: &str = "NAME";

/// Replaces `word` by `by` wherever it stands alone (no letter, digit, `_` or `-` beside it).
pub fn replace_word(text: &str, word: &str, by: &str) -> String {
    let inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '-');
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(word) {
        let (before, after) = (&rest[..at], &rest[at + word.len()..]);
        let alone =
            !inside(before.chars().next_back().or_else(|| out.chars().next_back())) && !inside(after.chars().next());
        out.push_str(before);
        out.push_str(if alone { by } else { word });
        rest = after;
    }
    out.push_str(rest);
    out
}

/// `[2026-11-21T07:13:09Z WARN  virtiofsd::limits] text` → `[TIME WARN  NAME] text`; other lines stay.
///
/// The part after `::` is the place in the source, which is nobody's interface.
pub fn log_line(line: &str) -> String {
    header(line).map_or_else(|| line.to_owned(), |(level, text)| format!("[TIME {level:5} {NAME}] {text}"))
}

fn header(line: &str) -> Option<(&str, &str)> {
    let (head, text) = line.strip_prefix('[')?.split_once("] ")?;
    let (time, rest) = head.split_once(' ')?;
    let (level, target) = rest.split_once(' ')?;
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    let target = target.trim_start();
    let padded = rest.len() - target.len() == 6;
    let named = !target.is_empty() && !target.contains(' ');
    (shape == "0000-00-00T00:00:00Z" && padded && named).then_some((level, text))
}

/// `(mount ID: 51)` → `(mount ID: N)`: the kernel numbers mounts as they come.
pub fn mount_ids(text: &str) -> String {
    const LABEL: &str = "(mount ID: ";
    let mut parts = text.split(LABEL);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(LABEL);
        out.push('N');
        out.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    out
}

/// A syslog datagram: `<14>Nov 21 07:24:10 virtiofsd[77]: text` → `<14>TIME virtiofsd[PID]: text`, with the PID apart.
pub fn datagram(text: &str) -> (String, Option<u32>) {
    let parts = || {
        let (priority, rest) = text.strip_prefix('<')?.split_once('>')?;
        // `Mmm dd hh:mm:ss ` is 16 bytes, whatever the day.
        let (time, rest) = rest.split_at_checked(16)?;
        let (tag, rest) = rest.split_once('[')?;
        let (pid, message) = rest.split_once("]: ")?;
        let pid: u32 = pid.parse().ok()?;
        time.ends_with(' ').then(|| (format!("<{priority}>TIME {tag}[PID]: {message}"), Some(pid)))
    };
    parts().unwrap_or_else(|| (text.to_owned(), None))
}

/// Takes clap's `Usage: …` line (with the empty line after it) out of an error text.
pub fn split_usage(text: &str) -> (Option<String>, String) {
    let mut usage = None;
    let mut rest = Vec::new();
    for line in text.lines() {
        if usage.is_none() && line.starts_with("Usage: ") {
            usage = Some(line.to_owned());
        } else {
            rest.push(line);
        }
    }
    let mut rest = rest.join("\n");
    if text.ends_with('\n') {
        rest.push('\n');
    }
    (usage, rest)
}

/// The options of a help text: (`--cache <CACHE>`, `[default: auto]`); no default is an empty text.
pub fn help_options(help: &str) -> Vec<(String, String)> {
    let mut options: Vec<(String, String)> = Vec::new();
    for line in help.lines() {
        let text = line.trim();
        // Short help puts descriptions of short options behind two spaces.
        let spec = text.split("  ").next().unwrap_or_default();
        if spec.starts_with('-') && line.starts_with(' ') && !line.starts_with("          ") {
            options.push((spec.to_owned(), String::new()));
        }
        if let (Some(at), Some((_, default))) = (text.find("[default: "), options.last_mut()) {
            *default = text[at..].to_owned();
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_replaced_only_when_they_stand_alone() {
        assert_eq!(replace_word("ovfs ovfsx /ovfs/ 'ovfs'", "ovfs", "N"), "N ovfsx /N/ 'N'");
        assert_eq!(replace_word("virtiofsd-backend virtiofsd", "virtiofsd", "N"), "virtiofsd-backend N");
    }

    #[test]
    fn log_headers_lose_time_and_target_but_keep_the_padding() {
        assert_eq!(log_line("[2026-11-21T07:13:09Z WARN  virtiofsd::limits] x"), "[TIME WARN  NAME] x");
        assert_eq!(log_line("[2026-11-21T07:13:09Z ERROR ovfs] x"), "[TIME ERROR NAME] x");
        assert_eq!(log_line("[2026-11-21T07:13:09Z WARN ovfs] x"), "[2026-11-21T07:13:09Z WARN ovfs] x");
        assert_eq!(log_line("plain"), "plain");
    }

    #[test]
    fn mount_ids_lose_their_numbers() {
        assert_eq!(mount_ids("a (mount ID: 51): b (mount ID: 7)"), "a (mount ID: N): b (mount ID: N)");
        assert_eq!(mount_ids("plain"), "plain");
    }

    #[test]
    fn datagrams_lose_time_and_pid() {
        let (text, pid) = datagram("<14>Nov  1 07:24:10 virtiofsd[77]: Waiting...");
        assert_eq!((text.as_str(), pid), ("<14>TIME virtiofsd[PID]: Waiting...", Some(77)));
        assert_eq!(datagram("junk").1, None);
    }

    #[test]
    fn help_options_pair_names_with_defaults() {
        let help =
            "Options:\n      --a <A>\n          Text\n          \n          [default: 1]\n  -f\n          Other -x\n";
        let want = [("--a <A>".to_owned(), "[default: 1]".to_owned()), ("-f".to_owned(), String::new())];
        assert_eq!(help_options(help), want);
    }
}
