//! Any sequence of things that happen leaves each transaction with one result.

use proptest::prelude::*;

use super::*;

/// What happens to a session, chosen at random.
#[derive(Clone, Debug)]
enum Op {
    Say(&'static [u8]),
    Noise(Vec<u8>),
    Submit(usize, bool),
    Written,
    Pass(u64),
    HangUp,
    Quit,
}

fn any_op() -> impl Strategy<Value = Op> {
    let good: Vec<&'static [u8]> =
        vec![b"250 ok\r\n", b"354 go\r\n", b"250-a\r\n250-PIPELINING\r\n250 SIZE\r\n"];
    let bad: Vec<&'static [u8]> = vec![
        b"550 no\r\n",
        b"450 no\r\n",
        b"421 bye\r\n",
        b"452 full\r\n",
        b"25",
        b"0 x",
        b"\r\n",
        b"\n",
        b"x\r\n",
        b"250-ok\r\n",
    ];
    prop_oneof![
        12 => prop::sample::select(good).prop_map(Op::Say),
        3 => prop::sample::select(bad).prop_map(Op::Say),
        1 => prop::collection::vec(any::<u8>(), 0..6).prop_map(Op::Noise),
        4 => (0usize..4, any::<bool>()).prop_map(|(n, strict)| Op::Submit(n, strict)),
        6 => Just(Op::Written),
        1 => (0u64..200_000).prop_map(Op::Pass),
        1 => Just(Op::HangUp),
        1 => Just(Op::Quit),
    ]
}

/// What an onlooker knows of one transaction.
#[derive(Default)]
struct Seen {
    dot_out: bool,
    positive_since: bool,
    done: u32,
}

struct Onlooker {
    session: Session,
    now: Now,
    current: usize,
    seen: Vec<Seen>,
    writing: bool,
}

impl Onlooker {
    fn drain(&mut self) {
        loop {
            match self.session.poll_output(self.now) {
                Output::Send(chunks) => {
                    assert!(!self.writing, "two writes at a time");
                    self.writing = true;
                    let wire: Vec<u8> =
                        chunks.iter().flat_map(|chunk| chunk.as_slice().to_vec()).collect();
                    let seen = &mut self.seen;
                    if wire.ends_with(b".\r\n") && !seen.is_empty() {
                        seen[self.current].dot_out = true;
                    }
                }
                Output::Event(Event::Done { key, outcomes }) => {
                    let seen = &mut self.seen[usize::try_from(key).unwrap()];
                    seen.done += 1;
                    outcomes.iter().for_each(|(_, outcome)| check(seen, outcome));
                }
                Output::Event(Event::Ready { .. } | Event::Failed(_) | Event::Retired)
                | Output::Event(Event::Ended { .. })
                | Output::Close => {}
                Output::Idle => return,
            }
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Say(bytes) => self.say(bytes),
            Op::Noise(bytes) => self.say(&bytes),
            Op::Submit(recipients, strict) => {
                if self.session.capacity() > 0 {
                    self.current = self.seen.len();
                }
                let key = self.seen.len().try_into().unwrap();
                self.seen.push(Seen::default());
                self.session.submit(Transaction { key, strict, ..mail(recipients) });
            }
            Op::Written if self.writing => {
                self.writing = false;
                self.session.handle_sent(self.now);
            }
            Op::Written => {}
            Op::Pass(ms) => {
                self.now = self.now.plus_ms(ms);
                self.session.handle_deadline(self.now);
            }
            Op::HangUp => self.session.handle_closed(None),
            Op::Quit => self.session.quit(self.now),
        }
        self.drain();
    }

    fn say(&mut self, bytes: &[u8]) {
        if let Some(seen) = self.seen.get_mut(self.current) {
            seen.positive_since |= seen.dot_out && bytes.contains(&b'2');
        }
        self.session.handle_input(bytes, self.now);
    }
}

fn check(seen: &Seen, outcome: &RecipientOutcome) {
    match outcome {
        RecipientOutcome::Accepted(_) => assert!(seen.dot_out && seen.positive_since),
        RecipientOutcome::Uncertain { .. } => assert!(seen.dot_out),
        RecipientOutcome::Unanswered { .. } => assert!(!seen.dot_out),
        RecipientOutcome::Refused { .. }
        | RecipientOutcome::TooMany { .. }
        | RecipientOutcome::Unfit { .. }
        | RecipientOutcome::Untried => {}
    }
}

proptest! {
    #[test]
    fn whatever_happens_each_transaction_has_one_result(
        ops in prop::collection::vec(any_op(), 0..60),
        start in 0usize..12,
    ) {
        let settings = ClientSettings {
            ehlo_name: "me.example".into(),
            timeouts: Timeouts::default(),
            messages_max: 5,
            train: TrainPolicy::Off,
            plain: false,
        };
        let now = Now::default();
        let session = Session::new(settings, now);
        let mut onlooker =
            Onlooker { session, now, current: 0, seen: Vec::new(), writing: false };
        // Mostly a start that succeeds, so that the interesting part is reached.
        let good = [Op::Say(b"220 x\r\n"), Op::Written, Op::Say(b"250-a\r\n250 PIPELINING\r\n")];
        for op in good.into_iter().take(start) {
            onlooker.apply(op);
        }
        for op in ops {
            onlooker.apply(op);
        }
        onlooker.apply(Op::HangUp);
        prop_assert!(onlooker.seen.iter().all(|seen| seen.done == 1));
        prop_assert_eq!(onlooker.session.deadline(), None::<Mono>);
    }

    #[test]
    fn a_split_of_the_replies_changes_nothing(
        codes in prop::collection::vec(
            prop_oneof![4 => Just("250"), 1 => Just("550"), 1 => Just("452"), 1 => Just("421")],
            3,
        ),
        data in prop::sample::select(vec!["354", "354", "354", "554", "250"]),
        last in prop::sample::select(vec!["250", "250-x\r\n250", "451", "x", "250-x\r\n251"]),
        cuts in prop::collection::vec(1usize..6, 1..12),
    ) {
        let group: String = codes.iter().copied().chain([data])
            .map(|code| format!("{code} text\r\n")).collect();
        let run = |cuts: &[usize]| {
            let mut pair = Pair::ready("250-host\r\n250 PIPELINING\r\n");
            pair.submit(mail(2));
            for said in [group.clone(), format!("{last} text\r\n")] {
                let (mut rest, mut cuts) = (said.as_bytes(), cuts.iter().cycle());
                while !rest.is_empty() {
                    let at = cuts.next().map_or(rest.len(), |cut| (*cut).min(rest.len()));
                    pair.session.handle_input(&rest[..at], pair.now);
                    rest = &rest[at..];
                }
                pair.pump();
            }
            (pair.sent, pair.events, pair.closed)
        };
        prop_assert_eq!(run(&cuts), run(&[]));
    }
}
