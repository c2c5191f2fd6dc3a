//! Command lines: from the input to what they do.
//!
//! Owns: the end of a command line, the order of commands, MAIL and RCPT. Never: the grammar
//! (`smtp/command`), message bytes (`intake`).

use super::header::trace_of;
use super::{Abort, Client, Gate, Progress, Refusal, Session, State, Transaction};
use crate::limits;
use crate::mail::time::Now;
use crate::mail::{Enhanced, Envelope, Mailbox, MessageFacts, Octets, Recipient, Rid};
use crate::smtp::command::{self, Command, CommandError, ForwardPath, Mail, Rcpt};
use crate::smtp::server::HeaderFields;

impl Session {
    pub(super) fn take_line(&mut self, rest: &[u8], gate: &mut dyn Gate, now: Now) -> Progress {
        let Some(lf) = memchr::memchr(b'\n', rest) else {
            return self.take_part_of_line(rest);
        };
        if lf >= limits::COMMAND_LINE_OCTETS_MAX {
            return self.take_part_of_line(rest);
        }
        self.heard = now.mono;
        let consumed = lf + 1;
        let line = rest[..lf].strip_suffix(b"\r").ok_or(CommandError::LineEnd);
        match line.and_then(|line| command::parse(line, &mut self.last_domains)) {
            Ok(command) => {
                let pipelined = rest.len() > consumed;
                self.handle_command(command, pipelined, gate, now);
            }
            Err(error) => self.refuse_line(error),
        }
        Progress::Taken(consumed)
    }

    /// No line end within the limit yet: waits, or refuses what cannot become a command.
    fn take_part_of_line(&mut self, rest: &[u8]) -> Progress {
        if rest.len() < limits::COMMAND_LINE_OCTETS_MAX {
            return Progress::Starved;
        }
        self.refuse(&Refusal::new(500, 5, 2, "Line too long"));
        if self.state != State::Closing {
            self.state = State::Overlong { discarded: 0, after_cr: false };
        }
        Progress::Taken(0)
    }

    pub(super) fn discard_line(
        &mut self,
        rest: &[u8],
        discarded: usize,
        mut after_cr: bool,
    ) -> Progress {
        let mut at = 0;
        while at < rest.len() {
            let lf = memchr::memchr(b'\n', &rest[at..]).map_or(rest.len(), |n| at + n);
            let ends = lf < rest.len() && if lf == 0 { after_cr } else { rest[lf - 1] == b'\r' };
            let end = rest.len().min(lf + 1);
            after_cr = rest[end - 1] == b'\r';
            at = end;
            if ends {
                self.state = State::Command;
                break;
            }
        }
        let discarded = discarded + at;
        if discarded > limits::COMMAND_DISCARD_OCTETS_MAX {
            self.turn_away(&Refusal::new(421, 7, 0, "Line without end"));
        } else if let State::Overlong { .. } = self.state {
            self.state = State::Overlong { discarded, after_cr };
            if at == 0 {
                return Progress::Starved;
            }
        }
        Progress::Taken(at)
    }

    fn refuse_line(&mut self, error: CommandError) {
        let (code, enhanced) = error.codes();
        let text = error.to_string().into();
        self.refuse(&Refusal { code, enhanced, text });
        if error.ends_session() {
            self.state = State::Closing;
        }
    }

    fn handle_command(
        &mut self,
        command: Command<'_>,
        pipelined: bool,
        gate: &mut dyn Gate,
        now: Now,
    ) {
        match command {
            Command::Ehlo(helo) => self.hello(helo, true, pipelined, gate),
            Command::Helo(helo) => self.hello(helo, false, pipelined, gate),
            Command::Mail(mail) => self.mail(mail, gate, now),
            Command::Rcpt(rcpt) => self.rcpt(rcpt, gate),
            Command::Data => {
                if !self.is_out_of_step(pipelined) {
                    self.data(now);
                }
            }
            Command::Bdat { octets, last } => self.bdat(octets, last, now),
            Command::Rset => {
                self.abort(gate, Abort::Reset);
                self.push_line("250 2.0.0 Ok");
            }
            Command::Noop => self.push_line("250 2.0.0 Ok"),
            Command::Vrfy => self.push_line("252 2.0.0 Cannot verify; send and see"),
            Command::Help => self.push_line("214 2.0.0 See RFC 5321"),
            Command::Quit => {
                self.abort(gate, Abort::Quit);
                let goodbye = format!("221 2.0.0 {} closing connection", self.settings.hostname);
                self.push_line(&goodbye);
                self.state = State::Closing;
            }
        }
    }

    /// EHLO and DATA end a pipelined group (RFC 2920 3.1). A client that we do not trust to relay
    /// and that does not wait for their reply is no mail client.
    fn is_out_of_step(&mut self, pipelined: bool) -> bool {
        let out_of_step = pipelined && !self.peer.relay;
        if out_of_step {
            self.handle_early_talk();
        }
        out_of_step
    }

    fn hello(&mut self, helo: &str, extended: bool, pipelined: bool, gate: &mut dyn Gate) {
        if self.is_out_of_step(pipelined) {
            return;
        }
        self.abort(gate, Abort::Reset);
        let trace = trace_of(helo, self.peer.ip, &self.settings.hostname);
        self.client = Some(Client { helo: helo.into(), extended, trace });
        if extended {
            self.push_offers();
        } else {
            let reply = format!("250 {}", self.settings.hostname);
            self.push_line(&reply);
        }
    }

    fn mail(&mut self, mail: Mail, gate: &mut dyn Gate, now: Now) {
        let Some(client) = &self.client else {
            return self.refuse(&Refusal::new(503, 5, 1, "Send EHLO first"));
        };
        if self.transaction.is_some() {
            return self.refuse(&Refusal::new(503, 5, 1, "A transaction is open"));
        }
        if mail.size_octets.is_some_and(|octets| octets > self.settings.message_octets_max) {
            return self.refuse(&Refusal::new(552, 3, 4, "Message too big"));
        }
        let mid = match gate.begin(mail.sender.as_ref(), mail.size_octets) {
            Ok(mid) => mid,
            Err(refusal) => return self.refuse(&refusal),
        };
        let envelope = Envelope {
            sender: mail.sender,
            body: mail.body,
            smtputf8: mail.smtputf8,
            ret: mail.ret,
            envid: mail.envid,
            recipients: Vec::with_capacity(1),
        };
        self.transaction = Some(Box::new(Transaction {
            mid,
            envelope,
            data: Octets::default(),
            received_octets: 0,
            facts: MessageFacts::default(),
            header: HeaderFields::default(),
            helo: client.helo.clone(),
            size_declared: mail.size_octets,
            started: now,
            intake: None,
            envelope_octets: 0,
        }));
        self.push_line("250 2.1.0 Ok");
    }

    fn rcpt(&mut self, rcpt: Rcpt, gate: &mut dyn Gate) {
        let Some(transaction) = &mut self.transaction else {
            return self.refuse(&Refusal::new(503, 5, 1, "Send MAIL first"));
        };
        if transaction.intake.is_some() {
            return self.refuse(&Refusal::new(503, 5, 1, "The message has begun"));
        }
        let address = match rcpt.path {
            ForwardPath::Mailbox(mailbox) => mailbox,
            ForwardPath::Postmaster => {
                let path = format!("postmaster@{}", self.settings.hostname);
                match Mailbox::parse(path.as_bytes()) {
                    Ok(mailbox) => mailbox,
                    Err(error) => return self.refuse_line(CommandError::Recipient(error)),
                }
            }
        };
        let taken = &mut transaction.envelope.recipients;
        let utf8_orcpt = rcpt.orcpt.as_ref().is_some_and(|orcpt| !orcpt.is_ascii());
        let needs_utf8 = address.needs_utf8() || utf8_orcpt;
        let rid = u32::try_from(taken.len()).map(Rid);
        let verdict = match rid {
            _ if !self.peer.relay => Err(Refusal::new(550, 7, 1, "Relaying denied")),
            _ if needs_utf8 && !transaction.envelope.smtputf8 => {
                let (code, Enhanced { subject, detail, .. }) = CommandError::NeedsUtf8.codes();
                let text = CommandError::NeedsUtf8.to_string();
                Err(Refusal::new(code, subject, detail, text))
            }
            Ok(rid) if taken.len() < self.settings.recipients_max => {
                gate.recipient(transaction.mid, rid, &address).map(|()| rid)
            }
            _ => Err(Refusal::new(452, 5, 3, "Too many recipients")),
        };
        match verdict {
            Ok(rid) => {
                let texts = address.as_str().len() + rcpt.orcpt.as_ref().map_or(0, |o| o.len());
                transaction.envelope_octets += size_of::<Recipient>() + texts;
                taken.push(Recipient { rid, address, notify: rcpt.notify, orcpt: rcpt.orcpt });
                self.push_line("250 2.1.5 Ok");
            }
            Err(refusal) => {
                gate.recipient_refused(transaction.mid, &address, &refusal);
                self.refuse(&refusal);
            }
        }
    }
}
