//! Who may answer: an id is claimed once, and nobody takes the name of a built-in.

use crate::exchange::{Log, Recorder};
use crate::plan::{Origin, Outcome, ProbeRecord};
use crate::policy::{Descriptor, Fault, Platform};
use crate::text;

/// Ids of the platforms inside this binary.
pub const BUILT_IN_IDS: [&str; 5] = ["cpu", "cuda", "rocm", "tpu", "xpu"];

/// Id of the native floor.
pub const FLOOR_ID: &str = "native";

/// A platform that wants to be asked.
pub struct Candidate {
    /// Who answers.
    pub platform: Box<dyn Platform>,
    /// Where it came from.
    pub origin: Origin,
    /// `sha256:…` of the component.
    pub digest: String,
}

/// All platforms, the refused ones included.
#[derive(Default)]
pub struct Registry {
    entries: Vec<Entry>,
}

/// One platform: to be asked, or refused.
pub(crate) struct Entry {
    pub descriptor: Option<Descriptor>,
    pub origin: Origin,
    pub digest: String,
    /// Absent where it may not be asked; then `refused` says why.
    pub platform: Option<Box<dyn Platform>>,
    pub refused: Option<Outcome>,
}

impl Registry {
    /// Adds a platform, asking it who it is. One that cannot say, or says what it may not, is kept as refused.
    pub fn register(&mut self, candidate: Candidate) {
        let Candidate {
            mut platform,
            origin,
            digest,
        } = candidate;
        let described = platform.describe();
        let (descriptor, refused) = match described {
            Err(Fault { message, .. }) => {
                (None, Some(Outcome::Failed(format!("describe: {message}"))))
            }
            Ok(descriptor) => match fault(&descriptor, &origin) {
                Some(fault) => (None, Some(Outcome::Refused(fault))),
                None => (Some(descriptor), None),
            },
        };
        let platform = refused.is_none().then_some(platform);
        self.entries.push(Entry {
            descriptor,
            origin,
            digest,
            platform,
            refused,
        });
        self.refuse_twins();
    }

    /// Remembers a file that could not be loaded, and why.
    pub fn register_failure(&mut self, origin: Origin, digest: String, why: String) {
        self.entries.push(Entry {
            descriptor: None,
            origin,
            digest,
            platform: None,
            refused: Some(Outcome::Refused(why)),
        });
    }

    /// Two claimants of one id are both refused: to prefer either would be a guess.
    fn refuse_twins(&mut self) {
        let Some(newest) = self
            .entries
            .last()
            .and_then(|entry| entry.descriptor.as_ref())
        else {
            return;
        };
        let id = newest.id.clone();
        let claims = |entry: &Entry| {
            entry
                .descriptor
                .as_ref()
                .is_some_and(|descriptor| descriptor.id == id)
        };
        let claimants: Vec<_> = self
            .entries
            .iter()
            .enumerate()
            .filter(|(_, e)| claims(e))
            .map(|(n, _)| n)
            .collect();
        if claimants.len() < 2 {
            return;
        }
        let named: Vec<_> = claimants.iter().map(|&n| self.entries[n].name()).collect();
        for &n in &claimants {
            let message = format!(
                "the id '{id}' is claimed by {}: none of them is used; remove all but one",
                text::list(&named)
            );
            self.entries[n].refused = Some(Outcome::Refused(message));
            self.entries[n].platform = None;
        }
    }

    /// Writes down from now on what each platform is asked and what it answers: its id and digest, with the log.
    pub fn record(&mut self) -> Vec<(String, String, Log)> {
        let mut logs = Vec::new();
        for entry in &mut self.entries {
            if let (Some(platform), Some(descriptor)) = (entry.platform.take(), &entry.descriptor) {
                let log = Log::default();
                let recorder = Recorder::new(platform, log.clone());
                entry.platform = Some(Box::new(recorder));
                logs.push((descriptor.id.clone(), entry.digest.clone(), log));
            }
        }
        logs
    }

    pub(crate) fn entries(&mut self) -> &mut [Entry] {
        &mut self.entries
    }
}

impl Entry {
    /// Where it came from, with its digest.
    fn name(&self) -> String {
        format!("{} ({})", self.origin, self.digest)
    }

    pub fn record(&self, outcome: Outcome) -> ProbeRecord {
        ProbeRecord {
            id: self
                .descriptor
                .as_ref()
                .map(|descriptor| descriptor.id.clone())
                .unwrap_or_default(),
            version: self
                .descriptor
                .as_ref()
                .map(|descriptor| descriptor.version),
            origin: self.origin.clone(),
            digest: self.digest.clone(),
            outcome,
            set_aside: None,
        }
    }
}

/// What is wrong with who a platform says it is.
fn fault(descriptor: &Descriptor, origin: &Origin) -> Option<String> {
    let Descriptor {
        id,
        vendor,
        visible_devices_var,
        env_allowlist,
        extra_quantization,
        ..
    } = descriptor;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !(1..=32).contains(&id.len()) || !id.chars().all(plain) {
        let expected = "1 to 32 lower-case letters, digits and hyphens";
        return Some(format!(
            "its id is {}: expected {expected}",
            text::quote(id)
        ));
    }
    let reserved = BUILT_IN_IDS.contains(&id.as_str()) || id == FLOOR_ID;
    if reserved && matches!(origin, Origin::File { .. }) {
        return Some(format!(
            "its id '{id}' is reserved for the platform of that name inside this binary: choose another"
        ));
    }
    let texts = env_allowlist
        .iter()
        .chain(extra_quantization)
        .chain(visible_devices_var)
        .chain([vendor]);
    texts
        .into_iter()
        .find_map(|part| text::fault(part))
        .map(|fault| format!("in who it says it is: {fault}"))
}
