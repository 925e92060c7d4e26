//! The title that a session gets from its first message.

use unicode_segmentation::UnicodeSegmentation;

/// A title's length in characters as people count them, about.
const LENGTH: usize = 50;
/// A word that begins before this place is cut rather than left out.
const LEAST: usize = 30;

/// The beginning of a text in one line, cut between two words where there is such a place.
pub(super) fn title_of(text: &str) -> String {
    // No more than is looked at, of a text that may have megabytes; a control character counts as a blank.
    let mut line = String::new();
    let mut characters = 0;
    let visible = |c: char| !c.is_control() && !c.is_whitespace();
    for word in text.split(|c: char| !visible(c)).filter(|word| !word.is_empty()) {
        if !line.is_empty() {
            line.push(' ');
        }
        let room = LENGTH + 1 - characters.min(LENGTH);
        let taken: String = word.graphemes(true).take(room).collect();
        line.push_str(&taken);
        characters = line.graphemes(true).count();
        if characters > LENGTH {
            break;
        }
    }
    if characters <= LENGTH {
        return line;
    }
    let mut ends = line.grapheme_indices(true).skip(LEAST).take(LENGTH + 1 - LEAST);
    let last_blank = ends.by_ref().filter(|(_, grapheme)| *grapheme == " ").last().map(|(at, _)| at);
    let hard = line.grapheme_indices(true).nth(LENGTH).map_or(line.len(), |(at, _)| at);
    let mut title = line[..last_blank.unwrap_or(hard)].trim_end_matches([' ', ',', ';', ':', '.', '-']).to_owned();
    title.push('…');
    title
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_text_is_its_own_title() {
        assert_eq!(title_of("Why is the sky blue?"), "Why is the sky blue?");
        assert_eq!(title_of("  Why\n\tis\u{0}the   sky blue?\n"), "Why is the sky blue?");
        assert_eq!(title_of(" \n"), "");
        assert_eq!(title_of(&"x".repeat(LENGTH)), "x".repeat(LENGTH));
    }

    #[test]
    fn a_long_one_is_cut_between_words() {
        let text = "Explain to me how a relay keeps a stream alive, when the network changes";
        assert_eq!(title_of(text), "Explain to me how a relay keeps a stream alive…");
        let exact = format!("{} {}", "a".repeat(49), "b".repeat(30));
        assert_eq!(title_of(&exact), format!("{}…", "a".repeat(49)));
        let fits = format!("{} {}", "a".repeat(50), "b".repeat(30));
        assert_eq!(title_of(&fits), format!("{}…", "a".repeat(50)));
    }

    #[test]
    fn a_text_without_blanks_is_cut_between_characters() {
        assert_eq!(title_of(&"x".repeat(1000)), format!("{}…", "x".repeat(LENGTH)));
        let family = "👨‍👩‍👧‍👦";
        assert_eq!(title_of(&family.repeat(80)), format!("{}…", family.repeat(LENGTH)));
        let accent = "e\u{301}";
        assert_eq!(title_of(&accent.repeat(80)), format!("{}…", accent.repeat(LENGTH)));
        assert_eq!(title_of(&format!("hi {}", "語".repeat(80))), format!("hi {}…", "語".repeat(LENGTH - 3)));
    }
}
