//! Load from smtp-source through the engine to smtp-sink.

use std::time::Duration;

use crate::common::{Engine, Setup, io_modes};
use crate::tools::{self, SmtpSink};

/// From twenty sessions at once to two hosts of equal priority: none is lost, none is doubled, and
/// the two get the same number to the message.
#[test]
fn smtp_source_through_two_smtp_sinks_is_shared_equally() {
    if !tools::installed(&["smtp-source", "smtp-sink"]) {
        return;
    }
    let messages = if tools::thorough() { 10_000 } else { 1_000 };
    for io in io_modes() {
        let folder = tempfile::tempdir().unwrap();
        let sinks = [SmtpSink::start(folder.path()), SmtpSink::start(folder.path())];
        let [a, b] = [sinks[0].address, sinks[1].address];
        let engine = Engine::start(&Setup::new(io, format!("sink.test {a}/pri=0, {b}/pri=0\n")));
        let mut source = tools::command("smtp-source");
        source.args(["-4", "-d", "-s", "20", "-l", "4096", "-m", &messages.to_string()]);
        source.args(["-f", "from@source.test", "-t", "to@sink.test", "-M", "source.test"]);
        tools::succeed(source.arg(engine.smtp.to_string()));
        let taken = || [sinks[0].messages(), sinks[1].messages()];
        tools::wait("all messages", Duration::from_secs(120), || {
            taken().iter().sum::<usize>() >= messages
        });
        engine.wait_empty();
        assert_eq!(taken(), [messages / 2, messages / 2], "io = {io}");
    }
}
