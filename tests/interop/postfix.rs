//! A real Postfix as the next hop and as the client, with a configuration and a queue of its own.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::{Engine, Peer, Setup, io_modes};
use crate::tools;

/// A Postfix: mail for `known@postfix.test` goes to a Maildir, other recipients there are refused,
/// and all other mail goes to the relay host.
struct Postfix {
    folder: tempfile::TempDir,
    address: SocketAddr,
}

/// name, type, private, wakeup, limit, command
const SERVICES: &[&str] = &[
    "cleanup unix n - n - 0 cleanup",
    "qmgr unix n - n 300 1 qmgr",
    "rewrite unix - - n - - trivial-rewrite",
    "bounce unix - - n - 0 bounce",
    "defer unix - - n - 0 bounce",
    "trace unix - - n - 0 bounce",
    "verify unix - - n - 1 verify",
    "flush unix n - n 1000? 0 flush",
    "proxymap unix - - n - - proxymap",
    "smtp unix - - n - - smtp",
    "relay unix - - n - - smtp",
    "virtual unix - n n - - virtual",
    "error unix - - n - - error",
    "retry unix - - n - - error",
    "anvil unix - - n - 1 anvil",
    "scache unix - - n - 1 scache",
    "postlog unix-dgram n - n - 1 postlogd",
];

impl Postfix {
    fn start(relay_host: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let postfix = Self { folder, address: tools::free_port() };
        // Its processes run as several users, all of which must come past this folder.
        fs::set_permissions(postfix.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["etc", "queue", "data", "mail"] {
            fs::create_dir(postfix.path(name)).unwrap();
        }
        let nobody = Some(65_534);
        std::os::unix::fs::chown(postfix.path("mail"), nobody, nobody).unwrap();
        fs::write(postfix.path("etc/main.cf"), postfix.main_cf(relay_host)).unwrap();
        let smtpd = format!("{} inet n - n - 100 smtpd", postfix.address);
        let services: Vec<&str> = [smtpd.as_str()].into_iter().chain(SERVICES.to_vec()).collect();
        fs::write(postfix.path("etc/master.cf"), services.join("\n") + "\n").unwrap();
        tools::succeed(tools::command("chown").arg("postfix").arg(postfix.path("data")));
        tools::succeed(&mut postfix.command("start"));
        tools::wait("Postfix", Duration::from_secs(20), || tools::listens(postfix.address));
        postfix
    }

    fn main_cf(&self, relay_host: SocketAddr) -> String {
        let (folder, ip, port) = (self.path(""), relay_host.ip(), relay_host.port());
        let folder = folder.display();
        format!(
            "compatibility_level = 3.6\n\
             queue_directory = {folder}/queue\n\
             data_directory = {folder}/data\n\
             maillog_file = {folder}/maillog\n\
             maillog_file_prefixes = {folder}\n\
             myhostname = postfix.example\n\
             mydestination =\n\
             alias_maps =\n\
             alias_database =\n\
             mynetworks = 127.0.0.0/8\n\
             inet_interfaces = 127.0.0.1\n\
             inet_protocols = ipv4\n\
             relayhost = [{ip}]:{port}\n\
             virtual_mailbox_domains = postfix.test\n\
             virtual_mailbox_base = {folder}/mail\n\
             virtual_mailbox_maps = inline:{{ known@postfix.test=known/ }}\n\
             virtual_uid_maps = static:65534\n\
             virtual_gid_maps = static:65534\n\
             virtual_minimum_uid = 1000\n\
             smtpd_relay_restrictions = permit_mynetworks, reject\n\
             smtpd_client_connection_count_limit = 0\n\
             smtpd_peername_lookup = no\n\
             smtpd_tls_security_level = none\n\
             smtp_tls_security_level = none\n\
             smtp_dns_support_level = disabled\n\
             smtp_host_lookup = native\n"
        )
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, verb: &str) -> std::process::Command {
        let mut command = tools::command("postfix");
        command.arg("-c").arg(self.path("etc")).arg(verb);
        command
    }

    /// The messages in the Maildir.
    fn mailbox(&self) -> Vec<PathBuf> {
        let Ok(files) = fs::read_dir(self.path("mail/known/new")) else { return Vec::new() };
        files.map(|file| file.unwrap().path()).collect()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("maillog")).unwrap_or_default()
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        // Ends the master process whose pid stands in this queue, and its children.
        let _ = self.command("abort").output();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

fn possible() -> bool {
    tools::installed(&["postfix", "smtp-source"]) && tools::root("Postfix")
}

fn source(to: SocketAddr, messages: usize, recipient: &str) {
    let mut source = tools::command("smtp-source");
    source.args(["-4", "-d", "-s", "10", "-l", "2000", "-m", &messages.to_string()]);
    source.args(["-f", "from@source.test", "-t", recipient, "-M", "source.test"]);
    tools::succeed(source.arg(to.to_string()));
}

fn contains(file: &Path, text: &str) -> bool {
    String::from_utf8_lossy(&fs::read(file).unwrap()).contains(text)
}

/// What the engine delivers to Postfix is in the mailbox, each message once; a recipient that
/// Postfix refuses comes back to the sender as a report.
#[test]
fn postfix_as_the_next_hop() {
    if !possible() {
        return;
    }
    let messages = 200;
    let postfix = Postfix::start(tools::free_port());
    for (round, io) in (1..).zip(io_modes()) {
        let sender = Peer::good();
        let routes = format!("postfix.test {}\nALL {}\n", postfix.address, sender.host(0));
        let engine = Engine::start(&Setup::new(io, routes));
        source(engine.smtp, messages, "known@postfix.test");
        engine.wait_empty();
        tools::wait("the mailbox", Duration::from_secs(60), || {
            postfix.mailbox().len() >= round * messages
        });
        assert_eq!(postfix.mailbox().len(), round * messages);
        assert!(postfix.mailbox().iter().all(|file| contains(file, "Received: ")));

        engine.send("from@source.test", &["known@postfix.test", "nobody@postfix.test"]);
        engine.wait("the report", || sender.messages().len() == 1);
        let report = String::from_utf8_lossy(&sender.messages()[0].data).into_owned();
        assert!(report.contains("nobody@postfix.test"), "{report}");
        assert!(report.contains("5.1.1"), "{report}");
        engine.wait_empty();
        // The good recipient of the same transaction got its copy.
        let all = round * messages + 1;
        tools::wait("its copy", Duration::from_secs(20), || postfix.mailbox().len() >= all);
        fs::remove_file(postfix.mailbox().pop().unwrap()).unwrap();
    }
}

/// Postfix hands everything to the engine as its relay host.
#[test]
fn postfix_as_the_client() {
    if !possible() {
        return;
    }
    let messages = 200;
    for io in io_modes() {
        let peer = Peer::good();
        let engine = Engine::start(&Setup::new(io, format!("sink.test {}\n", peer.host(0))));
        let postfix = Postfix::start(engine.smtp);
        source(postfix.address, messages, "to@sink.test");
        tools::wait("the messages", Duration::from_secs(60), || peer.messages().len() >= messages);
        engine.wait_empty();
        let got = peer.messages();
        assert_eq!(got.len(), messages, "io = {io}");
        let by_postfix = |data: &[u8]| String::from_utf8_lossy(data).contains("(Postfix");
        assert!(got.iter().all(|message| by_postfix(&message.data)));
    }
}
