//! The token that the admin API asks for.
//!
//! Owns: its file (made on the first start, readable by its owner alone), and the comparison.
//! Never: who may do what: whoever has the token may do everything.
//!
//! Diagnostics: [`TokenError`], one line that says what to do.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Random octets of a token that is made here; the file holds them in hexadecimal.
const RANDOM_OCTETS: usize = 32;

/// Shortest and longest token in characters. An operator may write one by hand.
const CHARS_MIN: usize = 16;
const CHARS_MAX: usize = 1024;

/// Permissions that nobody but the owner may have.
const OTHERS: u32 = 0o077;

/// The token in force.
#[derive(Clone)]
pub struct Token(Box<str>);

/// Why there is no token.
#[derive(Debug)]
pub enum TokenError {
    /// Others than its owner can read it.
    Exposed(PathBuf, u32),
    /// It holds no token.
    Malformed(PathBuf),
    /// The system says no.
    Io(PathBuf, io::Error),
}

impl TokenError {
    /// The kind of the system's error.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Exposed(..) => io::ErrorKind::PermissionDenied,
            Self::Malformed(_) => io::ErrorKind::InvalidData,
            Self::Io(_, error) => error.kind(),
        }
    }
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exposed(file, mode) => {
                let file = file.display();
                write!(f, "{file} can be read by others (mode {mode:04o}): chmod 600 {file}")
            }
            Self::Malformed(file) => {
                let file = file.display();
                write!(
                    f,
                    "{file} holds no token of {CHARS_MIN} to {CHARS_MAX} letters and digits: "
                )?;
                write!(f, "delete it and start the engine, which makes a new one")
            }
            Self::Io(file, error) => write!(f, "token file {}: {error}", file.display()),
        }
    }
}

impl std::error::Error for TokenError {}

impl Token {
    /// The token in `file`, which is made if it is missing.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn load_or_make(file: &Path) -> Result<Self, TokenError> {
        match Self::load(file) {
            Err(TokenError::Io(_, error)) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        make(file).map_err(|error| TokenError::Io(file.to_owned(), error))?;
        Self::load(file)
    }

    /// The token in `file`.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn load(file: &Path) -> Result<Self, TokenError> {
        let failed = |error| TokenError::Io(file.to_owned(), error);
        let mut text = String::new();
        let open = File::open(file).map_err(failed)?;
        let mode = open.metadata().map_err(failed)?.mode() & 0o7777;
        if mode & OTHERS != 0 {
            return Err(TokenError::Exposed(file.to_owned(), mode));
        }
        let malformed = || TokenError::Malformed(file.to_owned());
        match open.take(CHARS_MAX as u64 + 2).read_to_string(&mut text) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(malformed()),
            result => result.map_err(failed)?,
        };
        let text = text.trim_end();
        let fits = (CHARS_MIN..=CHARS_MAX).contains(&text.len());
        if !fits || !text.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(malformed());
        }
        Ok(Self(text.into()))
    }

    /// Is `offered` the token? Takes the same time wherever the first difference stands.
    #[must_use]
    pub fn is(&self, offered: &str) -> bool {
        let (own, offered) = (self.0.as_bytes(), offered.as_bytes());
        let differences = own.iter().zip(offered).fold(0, |sum, (a, b)| sum | (a ^ b));
        own.len() == offered.len() && std::hint::black_box(differences) == 0
    }

    /// What a client puts behind `Bearer` (RFC 6750 2.1).
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

fn make(file: &Path) -> io::Result<()> {
    let mut random = [0; RANDOM_OCTETS];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let mut text: String = random.iter().map(|octet| format!("{octet:02x}")).collect();
    text.push('\n');
    if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    // Exclusively: a file or link that somebody put there meanwhile is not written to.
    let mut made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    made.write_all(text.as_bytes())?;
    made.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn it_is_made_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/admin.token");
        let token = Token::load_or_make(&file).unwrap();
        assert_eq!(token.as_str().len(), 2 * RANDOM_OCTETS);
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert!(Token::load_or_make(&file).unwrap().is(token.as_str()));
        let other = Token::load_or_make(&folder.path().join("other")).unwrap();
        assert!(!other.is(token.as_str()));
        assert!(!token.is("") && !token.is(&token.as_str()[1..]));
        assert!(!format!("{token:?}").contains(token.as_str()));
    }

    #[test]
    fn what_others_can_read_or_is_no_token_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        for wrong in ["", "short", "has blanks in between", "0123456789abcdef\u{e9}"] {
            fs::write(&file, wrong).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(Token::load_or_make(&file), Err(TokenError::Malformed(_))), "{wrong}");
        }
        fs::write(&file, "0123456789abcdef\n").unwrap();
        assert!(Token::load(&file).unwrap().is("0123456789abcdef"));
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            let error = Token::load_or_make(&file).unwrap_err();
            assert!(matches!(error, TokenError::Exposed(..)), "{mode:o}");
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }
}
