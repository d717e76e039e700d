//! The result of a verification: a tree of named checks, and the ledger in which one node is written.

use std::borrow::Cow;

use casemate_foreign::one_line;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::names::{self, CheckName, Question};
use crate::policy::PolicyError;

/// The end of a verification.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every check was done and passed.
    Accept,
    /// A check failed, or could not be done.
    Reject,
    /// The quote is genuine, but there is nothing to judge its platform by. Not to be relied on.
    NoCollateral,
}

impl Verdict {
    /// As output and audit records spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Accept => "accept",
            Verdict::Reject => "reject",
            Verdict::NoCollateral => "no-collateral",
        }
    }
}

/// What became of one check.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Done, and what it asks for holds.
    Passed,
    /// Done, and what it asks for does not hold.
    Failed,
    /// Not done; the detail says why.
    NotDone,
}

/// One check.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Check {
    /// Which.
    pub name: CheckName,
    /// What became of it.
    pub result: Outcome,
    /// The values that were compared, or why it was not done.
    pub detail: String,
}

/// Whom the root of a chain belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// A vendor, whose root is built in.
    Vendor(&'static str),
    /// A maker whose key the caller named, as no root is built in.
    Caller,
    /// Nobody in particular: a root for tests, named by the caller. Proves nothing.
    Test,
}

impl Trust {
    /// The vendor's name, or `TEST`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Trust::Vendor(name) => name,
            Trust::Caller => "named by the caller",
            Trust::Test => "TEST",
        }
    }
}

impl Serialize for Trust {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Evidence within evidence, such as the hardware report that a virtual TPM's key rests on.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Part {
    /// The kind of evidence.
    pub part: &'static str,
    /// What was found about it.
    #[serde(flatten)]
    pub judgement: Judgement<Value>,
}

/// A verification's result: the node of a tree. Serializes as `{"verdict", "checks", "claims", "answers"}`,
/// and `"parts"` where there are some.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(bound = "C: Serialize")]
pub struct Judgement<C = Value> {
    /// The end of it, parts included.
    pub verdict: Verdict,
    /// Every check of this node, in the order of its kind.
    pub checks: Vec<Check>,
    /// What the evidence says about itself, if it could be read. Only to be believed with
    /// [`Verdict::Accept`].
    #[serde(serialize_with = "object")]
    pub claims: Option<C>,
    /// What this evidence rests on or carries.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
    /// What the tree says to each question.
    #[serde(serialize_with = "answers")]
    pub answers: [Outcome; Question::ALL.len()],
    /// Whom the root belongs to; `None` when it is not trusted.
    #[serde(skip)]
    pub trust: Option<Trust>,
    /// Whether the host can read the guest's memory, by its own word.
    #[serde(skip)]
    pub debuggable: bool,
    /// Checks that were not asked for: the policy sets no condition for them.
    #[serde(skip)]
    pub unset: Vec<CheckName>,
    /// Which inputs are not what they should be at all (a truncated report, a certificate that does
    /// not parse). The verdict is then [`Verdict::Reject`]; a program reports bad input.
    #[serde(skip)]
    pub malformed: Vec<String>,
}

fn object<C: Serialize, S: Serializer>(
    claims: &Option<C>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match claims {
        Some(claims) => claims.serialize(serializer),
        None => Map::new().serialize(serializer),
    }
}

fn answers<S: Serializer>(answers: &[Outcome; 4], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(Question::ALL.iter().zip(answers))
}

impl<C> Judgement<C> {
    /// The judgement when the policy cannot be understood: nothing is looked at.
    #[must_use]
    pub fn policy_invalid(error: &PolicyError) -> Self {
        let mut ledger = Ledger::new(&[]);
        let source = std::error::Error::source(error).map(|source| format!(": {source}"));
        let detail = format!("{error}{}", source.unwrap_or_default());
        ledger.malformed(names::POLICY_INVALID, detail);
        ledger.close(None, "the policy could not be read")
    }

    /// The names of the checks that failed, of this node and of its parts.
    pub fn failed(&self) -> impl Iterator<Item = CheckName> + '_ {
        let own = self.checks.iter().filter(|check| check.result == Outcome::Failed);
        let own = own.map(|check| check.name);
        let below: Vec<_> = self
            .parts
            .iter()
            .flat_map(|part| part.judgement.failed().collect::<Vec<_>>())
            .collect();
        own.chain(below)
    }

    /// The names of the checks that failed or were not done, of this node and of its parts.
    #[must_use]
    pub fn unfulfilled(&self) -> Vec<CheckName> {
        let own = self.checks.iter().filter(|check| check.result != Outcome::Passed);
        let below = self.parts.iter().flat_map(|part| part.judgement.unfulfilled());
        own.map(|check| check.name).chain(below).collect()
    }

    /// Whom the roots of the tree belong to: a TEST root outweighs all others, and a node without a root of its
    /// own rests on that of its first part.
    #[must_use]
    pub fn root(&self) -> Option<Trust> {
        if self.is_test() {
            return Some(Trust::Test);
        }
        self.trust.or_else(|| self.parts.iter().find_map(|part| part.judgement.root()))
    }

    /// The answer to a question.
    #[must_use]
    pub fn answer(&self, question: Question) -> Outcome {
        let pairs = Question::ALL.into_iter().zip(self.answers);
        pairs.into_iter().find(|(one, _)| *one == question).map_or(Outcome::NotDone, |(_, it)| it)
    }

    /// Whether any root of the tree is a TEST root.
    #[must_use]
    pub fn is_test(&self) -> bool {
        self.trust == Some(Trust::Test) || self.parts.iter().any(|part| part.judgement.is_test())
    }

    /// Adds evidence that this one rests on or carries: the verdict can only become worse.
    pub(crate) fn add_part<P: Serialize>(&mut self, part: &'static str, judgement: Judgement<P>) {
        let judgement = judgement.erase();
        self.verdict = match (self.verdict, judgement.verdict) {
            (Verdict::Accept, verdict) => verdict,
            (Verdict::NoCollateral, Verdict::Accept | Verdict::NoCollateral) => {
                Verdict::NoCollateral
            }
            _ => Verdict::Reject,
        };
        self.debuggable |= judgement.debuggable;
        self.malformed.extend(judgement.malformed.iter().map(|what| format!("{part}: {what}")));
        for (own, other) in self.answers.iter_mut().zip(judgement.answers) {
            *own = both(*own, other);
        }
        self.parts.push(Part { part, judgement });
    }

    /// The same with the claims as JSON.
    #[must_use]
    pub fn erase(self) -> Judgement<Value>
    where
        C: Serialize,
    {
        // Claims are numbers, texts and lists: nothing that JSON could not carry.
        let claims = self.claims.and_then(|claims| serde_json::to_value(claims).ok());
        Judgement {
            claims,
            verdict: self.verdict,
            checks: self.checks,
            parts: self.parts,
            answers: self.answers,
            trust: self.trust,
            debuggable: self.debuggable,
            unset: self.unset,
            malformed: self.malformed,
        }
    }
}

/// What two nodes say to a question together: a failure counts, else who answers it.
fn both(one: Outcome, other: Outcome) -> Outcome {
    match (one, other) {
        (Outcome::Failed, _) | (_, Outcome::Failed) => Outcome::Failed,
        (Outcome::Passed, _) | (_, Outcome::Passed) => Outcome::Passed,
        (Outcome::NotDone, Outcome::NotDone) => Outcome::NotDone,
    }
}

/// Collects checks. What was announced and never recorded ends as "not done", so that forgetting
/// a check can never accept.
pub(crate) struct Ledger {
    announced: Vec<CheckName>,
    checks: Vec<Check>,
    unset: Vec<CheckName>,
    malformed: Vec<String>,
}

impl Ledger {
    pub(crate) fn new(announced: &[CheckName]) -> Self {
        Ledger {
            announced: announced.to_vec(),
            checks: Vec::new(),
            unset: Vec::new(),
            malformed: Vec::new(),
        }
    }

    /// Records a check; `Err` is why it failed. Of several records of one check the failures count.
    pub(crate) fn record(&mut self, name: CheckName, finding: Result<String, String>) {
        let (result, detail) = match finding {
            Ok(detail) => (Outcome::Passed, detail),
            Err(detail) => (Outcome::Failed, detail),
        };
        self.write(Check { name, result, detail });
    }

    /// Records that a check could not be done.
    pub(crate) fn not_done(&mut self, name: CheckName, why: &str) {
        self.write(Check { name, result: Outcome::NotDone, detail: why.to_owned() });
    }

    /// Records a check for which the policy sets no condition when `condition` is `None`.
    pub(crate) fn condition<T>(
        &mut self,
        name: CheckName,
        condition: Option<T>,
        check: impl FnOnce(T) -> Result<String, String>,
    ) {
        match condition {
            None => self.unset(name),
            Some(condition) => self.record(name, check(condition)),
        }
    }

    /// Records that nobody asked for a check.
    pub(crate) fn unset(&mut self, name: CheckName) {
        self.unset.push(name);
    }

    /// Records a failed check whose cause is that an input is not what it should be.
    pub(crate) fn malformed(&mut self, name: CheckName, detail: String) {
        self.malformed.push(one_line(&detail).into_owned());
        self.record(name, Err(detail));
    }

    /// Details have foreign text in them, which errors of parsers repeat: no character of it acts on a
    /// terminal or ends a line.
    fn write(&mut self, mut check: Check) {
        if let Cow::Owned(printable) = one_line(&check.detail) {
            check.detail = printable;
        }
        match self.checks.iter_mut().find(|earlier| earlier.name == check.name) {
            None => self.checks.push(check),
            Some(earlier) => merge(earlier, check),
        }
    }

    /// Whether every one of `names` was done and passed.
    pub(crate) fn all_passed(&self, names: &[CheckName]) -> bool {
        names.iter().all(|name| {
            self.checks.iter().any(|check| check.name == *name && check.result == Outcome::Passed)
        })
    }

    /// Closes the ledger. `why_not_done` explains the checks that were announced but not recorded.
    pub(crate) fn close<C>(mut self, claims: Option<C>, why_not_done: &str) -> Judgement<C> {
        let announced = std::mem::take(&mut self.announced);
        for name in &announced {
            let known =
                self.unset.contains(name) || self.checks.iter().any(|check| check.name == *name);
            if !known {
                self.not_done(*name, why_not_done);
            }
        }
        let place = |name: CheckName| announced.iter().position(|one| *one == name);
        self.checks.sort_by_key(|check| place(check.name).unwrap_or(usize::MAX));
        self.unset.sort_by_key(|name| place(*name).unwrap_or(usize::MAX));
        let accepted = !self.checks.is_empty()
            && self.checks.iter().all(|check| check.result == Outcome::Passed);
        Judgement {
            verdict: if accepted { Verdict::Accept } else { Verdict::Reject },
            answers: Question::ALL.map(|question| answer(&self.checks, question)),
            checks: self.checks,
            claims,
            parts: Vec::new(),
            trust: None,
            debuggable: false,
            unset: self.unset,
            malformed: self.malformed,
        }
    }
}

/// What a node's checks say to a question: a failure counts, then a check that was not done.
fn answer(checks: &[Check], question: Question) -> Outcome {
    let deciding = || checks.iter().filter(|check| check.name.question() == Some(question));
    let any = |outcome| deciding().any(|check| check.result == outcome);
    if any(Outcome::Failed) {
        Outcome::Failed
    } else if any(Outcome::NotDone) || !any(Outcome::Passed) {
        Outcome::NotDone
    } else {
        Outcome::Passed
    }
}

/// Several findings under one name: a failure outweighs all, "not done" outweighs "passed".
fn merge(earlier: &mut Check, later: Check) {
    fn weight(outcome: Outcome) -> u8 {
        match outcome {
            Outcome::Passed => 0,
            Outcome::NotDone => 1,
            Outcome::Failed => 2,
        }
    }
    match weight(later.result).cmp(&weight(earlier.result)) {
        std::cmp::Ordering::Greater => *earlier = later,
        std::cmp::Ordering::Equal => {
            earlier.detail.push_str("; ");
            earlier.detail.push_str(&later.detail);
        }
        std::cmp::Ordering::Less => {}
    }
}
