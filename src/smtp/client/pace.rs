//! How many transactions may be in flight on a session, and in which way they go.
//!
//! Owns: what was learned of the host on this session: whether its replies carry marks, the
//! window, and whether it must be spoken to plainly. Never: a transaction.
//!
//! The window grows 1, 2, 4 and so on: each time as many messages were taken as it holds. A
//! refusal for the moment halves it; replies that leave doubt about their place set it to 1.
//!
//! Limits: [`limits::TRAIN_MESSAGES_MAX`].

use super::{ClientSettings, Extensions, TrainPolicy};
use crate::limits;

/// Plain transactions that must show marks before trains begin.
const PLAIN_FIRST: u32 = 3;

/// Transactions in flight by DATA: one whose final reply is awaited, and the next one's commands.
const DATA_WINDOW: u32 = 2;

/// How a transaction goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// Alone: nothing else is in flight.
    Plain,
    /// By DATA, its commands right behind the final dot of the one before (RFC 2920 3.1).
    Data,
    /// Whole, by BDAT LAST, right behind the one before (RFC 3030).
    Bdat,
}

/// Do the host's replies carry enhanced codes that tell which command they answer?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Marks {
    /// This many transactions have shown them.
    Unknown(u32),
    Shown,
    Missing,
}

/// What a settled transaction says about the pace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sign {
    /// Taken; all its positive replies carried their marks, or not.
    Taken { marked: bool },
    /// The host cannot just now.
    Strained,
    /// Neither.
    Other,
}

/// What a session learned that the next one to the same host should know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Learned {
    pub(super) window: Option<u32>,
    pub(super) plainly: bool,
}

/// The pace of one session.
#[derive(Debug)]
pub(super) struct Pace {
    /// The way of the next transaction, unless marks are to be learned first.
    best: Way,
    marks: Marks,
    window: u32,
    taken: u32,
    learned: Learned,
}

impl Pace {
    pub(super) fn new(settings: &ClientSettings, offered: &Extensions) -> Self {
        let (auto, known) = match settings.train {
            TrainPolicy::Off => (false, 0),
            TrainPolicy::Auto { window } => (!settings.plain, window),
        };
        let best = match (auto && offered.pipelining, offered.chunking) {
            (false, _) => Way::Plain,
            (true, true) if offered.enhanced_status_codes => Way::Bdat,
            (true, _) => Way::Data,
        };
        let marks = match best {
            Way::Bdat if known > 0 => Marks::Shown,
            Way::Bdat => Marks::Unknown(0),
            Way::Data if offered.enhanced_status_codes => Marks::Unknown(0),
            Way::Plain | Way::Data => Marks::Missing,
        };
        let window = known.clamp(1, limits::TRAIN_MESSAGES_MAX);
        Self { best, marks, window, taken: 0, learned: Learned::default() }
    }

    /// How the next transaction goes.
    pub(super) fn way(&self) -> Way {
        match (self.best, self.marks) {
            _ if self.learned.plainly => Way::Plain,
            (Way::Bdat, Marks::Shown) => Way::Bdat,
            (Way::Bdat, Marks::Unknown(_)) | (Way::Plain, _) => Way::Plain,
            (Way::Bdat, Marks::Missing) | (Way::Data, _) => Way::Data,
        }
    }

    /// Most transactions in flight.
    pub(super) fn window(&self) -> u32 {
        match self.way() {
            Way::Plain => 1,
            Way::Data => DATA_WINDOW,
            Way::Bdat => self.window,
        }
    }

    /// A positive reply without its mark is out of place.
    pub(super) fn asks_for_marks(&self) -> bool {
        self.marks == Marks::Shown
    }

    /// Takes note of a transaction that is settled.
    pub(super) fn note(&mut self, sign: Sign) {
        match (sign, self.marks) {
            (Sign::Taken { marked: true }, Marks::Unknown(shown)) => {
                let enough = shown + 1 >= PLAIN_FIRST;
                self.marks = if enough { Marks::Shown } else { Marks::Unknown(shown + 1) };
            }
            (Sign::Taken { marked: false }, Marks::Unknown(_)) => self.marks = Marks::Missing,
            (Sign::Taken { .. }, Marks::Shown) => self.grow(),
            (Sign::Strained, Marks::Shown) => self.shrink(self.window / 2),
            (Sign::Taken { .. } | Sign::Strained | Sign::Other, _) => {}
        }
        self.learn();
    }

    fn grow(&mut self) {
        self.taken += 1;
        if self.taken >= self.window {
            self.window = (self.window * 2).min(limits::TRAIN_MESSAGES_MAX);
            self.taken = 0;
        }
    }

    fn shrink(&mut self, window: u32) {
        self.window = window.max(1);
        self.taken = 0;
        self.learn();
    }

    fn learn(&mut self) {
        if self.best == Way::Bdat && self.marks == Marks::Shown && !self.learned.plainly {
            self.learned.window = Some(self.window);
        }
    }

    /// Refusals came whose place is in doubt.
    pub(super) fn doubt(&mut self) {
        self.shrink(1);
    }

    /// Replies could not be told apart: one transaction at a time from now on.
    pub(super) fn speak_plainly(&mut self) {
        if self.best != Way::Plain {
            self.learned = Learned { window: Some(0), plainly: true };
        }
    }

    pub(super) fn learned(&self) -> Learned {
        self.learned
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::settings::Timeouts;

    fn pace(train: TrainPolicy, plain: bool, words: &str) -> Pace {
        let offered = Extensions {
            pipelining: words.contains('p'),
            chunking: words.contains('c'),
            enhanced_status_codes: words.contains('e'),
            ..Extensions::default()
        };
        let settings = ClientSettings {
            ehlo_name: "x".into(),
            timeouts: Timeouts::default(),
            messages_max: 0,
            train,
            plain,
        };
        Pace::new(&settings, &offered)
    }

    #[test]
    fn trains_need_all_three_extensions_and_three_marked_transactions() {
        let new = TrainPolicy::Auto { window: 0 };
        let known = TrainPolicy::Auto { window: 16 };
        for (train, plain, words, window, after) in [
            (TrainPolicy::Off, false, "pce", 1, 1),
            (new, true, "pce", 1, 1),
            (known, true, "pce", 1, 1),
            (new, false, "ce", 1, 1),
            (new, false, "pc", 2, 2),
            (new, false, "pe", 2, 2),
            (new, false, "p", 2, 2),
            (known, false, "p", 2, 2),
            (new, false, "pce", 1, 2),
            (known, false, "pce", 16, 16),
        ] {
            let mut pace = pace(train, plain, words);
            assert_eq!(pace.window(), window, "{words}");
            for _ in 0..=PLAIN_FIRST {
                pace.note(Sign::Taken { marked: true });
            }
            assert_eq!(pace.window(), after, "{words}");
            assert_eq!(pace.learned().window.is_some(), words == "pce" && after > 1);
        }
        let mut pace = pace(new, false, "pce");
        pace.note(Sign::Taken { marked: true });
        pace.note(Sign::Taken { marked: false });
        assert_eq!((pace.way(), pace.learned()), (Way::Data, Learned::default()));
    }

    #[test]
    fn the_window_doubles_while_all_goes_well() {
        let mut pace = pace(TrainPolicy::Auto { window: 1 }, false, "pce");
        let mut windows = vec![pace.window()];
        for _ in 0..200 {
            pace.note(Sign::Taken { marked: true });
            windows.push(pace.window());
        }
        windows.dedup();
        assert_eq!(windows, [1, 2, 4, 8, 16, 32, 64]);
        pace.note(Sign::Other);
        assert_eq!(pace.window(), 64);
        pace.note(Sign::Strained);
        assert_eq!(pace.window(), 32);
        pace.doubt();
        assert_eq!((pace.window(), pace.learned().window), (1, Some(1)));
        pace.speak_plainly();
        assert_eq!((pace.way(), pace.window()), (Way::Plain, 1));
        assert_eq!(pace.learned(), Learned { window: Some(0), plainly: true });
    }
}
