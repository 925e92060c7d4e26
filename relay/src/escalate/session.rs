//! Requests that go on with a conversation: what of it goes with them.

use super::{Caller, Escalator, failed, store_failed};
use crate::config::Config;
use crate::store::executor::Db;
use crate::store::sessions::history::{History, history, tokens};
use crate::store::sessions::turn::Question;
use crate::store::sessions::{self, MAX_TEXT, Refusal};
use belay_protocol::dialect::prompt::Prompt;
use belay_protocol::id::SessionId;
use belay_protocol::message::{Dialect, EscalateRequest, Failed, FailureCode, escalate};
use std::sync::Arc;

/// The conversation that a request goes on with.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub(crate) session: SessionId,
    pub(crate) history: History,
    /// What the tenant's sessions may take, in bytes.
    most: u64,
}

impl Conversation {
    /// Bytes of all that there is of it.
    pub(crate) fn bytes(&self) -> u64 {
        let turns: usize = self.history.turns.iter().map(|turn| turn.content.len()).sum();
        self.history.context.bytes() + turns as u64
    }

    /// Puts the conversation around a prompt, as far as there is room in the model's window of `context`
    /// tokens beside `output` and the prompt. What the prompt says itself counts more, and comes later.
    /// Returns what is kept of the question, and what the caller is told.
    pub(crate) fn surround(mut self, prompt: &mut Prompt, context: u64, output: u64) -> (Question, Told) {
        let text = Arc::from(prompt.query.as_str());
        let question = Question { session: self.session, text, most: self.most };
        let own = std::mem::take(&mut self.history.context);
        if prompt.framing.is_none() && !own.framing.is_empty() {
            prompt.framing = Some(own.framing);
        }
        prompt.knowledge.splice(0..0, own.knowledge);
        prompt.constraints.splice(0..0, own.constraints);
        let fixed = serde_json::to_string(&prompt).map_or(u64::MAX, |text| tokens(&text));
        self.history.shorten(context.saturating_sub(output).saturating_sub(fixed));
        let told = Told { messages: self.history.turns.len() as u64, left_out: self.history.left_out };
        prompt.history.splice(0..0, self.history.turns);
        (question, told)
    }
}

/// What the caller is told of the conversation that went with its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) messages: u64,
    pub(crate) left_out: u64,
}

impl Told {
    pub(crate) fn headers(self) -> [(String, String); 2] {
        [
            ("belay-session-messages".to_owned(), self.messages.to_string()),
            ("belay-session-left-out".to_owned(), self.left_out.to_string()),
        ]
    }
}

impl Escalator {
    /// The conversation that a request names, read.
    pub(super) async fn conversation(
        &self,
        config: &Config,
        caller: &Caller,
        request: &EscalateRequest,
    ) -> Result<Option<Conversation>, Failed> {
        let Some(name) = &request.session_id else { return Ok(None) };
        let id = request.request_id;
        let wrong = |code, message: String, remedy: &str| Err(failed(id, code, message, remedy));
        let session: SessionId = match name.parse() {
            Ok(session) => session,
            Err(error) => return wrong(FailureCode::INVALID_REQUEST, format!("{error}"), "choose another name"),
        };
        if request.dialect != Dialect::PROMPT {
            let message = format!("a body of dialect {} brings its own conversation", request.dialect);
            return wrong(FailureCode::UNSUPPORTED, message, "leave the session out, or ask with belay's own prompt");
        }
        if request.body_len as usize > MAX_TEXT {
            let message = format!("a question of {} bytes, a session takes {MAX_TEXT}", request.body_len);
            return wrong(FailureCode::LIMIT, message, "ask for less, or without a session");
        }
        let most = config.limits.session_history_tokens;
        let room = match wanted_history(request) {
            Ok(wanted) => u64::from(wanted.map_or(most, |wanted| wanted.min(most))),
            Err(message) => return wrong(FailureCode::INVALID_REQUEST, message, "send four bytes, little endian"),
        };
        let (db, named) = (Db::Tenant(caller.tenant.clone()), session.clone());
        // Whether it may be asked there, the hold decides: a repetition gets its end, whatever became of it.
        let found = self.store.run(db, move |connection| history(connection, &named, room)).await;
        let history = found.map_err(|error| store_failed(id, &error))?;
        Ok(Some(Conversation { session, history, most: config.limits.sessions }))
    }
}

/// How many tokens of history a request wants at the most. Errors: that is no number.
fn wanted_history(request: &EscalateRequest) -> Result<Option<u32>, String> {
    let wanted = request.extensions.iter().find(|extension| extension.kind == escalate::HISTORY_TOKENS);
    let read = |value: &[u8]| value.try_into().map(u32::from_le_bytes);
    let read = wanted.map(|extension| read(&extension.value));
    read.transpose().map_err(|_| "the tokens of history that are wanted are no number".to_owned())
}

/// The session's own model, where a request names none.
pub(super) fn model_of(request: &EscalateRequest, conversation: Option<&Conversation>) -> Option<String> {
    let own = conversation.map(|conversation| &conversation.history.model);
    own.filter(|model| request.model.is_empty() && !model.is_empty()).cloned()
}

/// What is said of a session that cannot be used.
pub(crate) fn refused(session: &SessionId, refusal: &Refusal) -> (FailureCode, String, &'static str) {
    match refusal {
        Refusal::NotFound => {
            (FailureCode::NOT_FOUND, format!("there is no session {session:?}"), "see belay sessions list")
        }
        Refusal::Deleted => {
            let remedy = "restore it (belay sessions restore), or choose another name";
            (FailureCode::DELETED, format!("the session {session:?} was deleted"), remedy)
        }
        Refusal::TooLarge(bytes) => {
            let most = sessions::MAX_CONTEXT;
            let message = format!("the context of {session:?} would have {bytes} bytes, at most {most} are allowed");
            (FailureCode::LIMIT, message, "leave something out")
        }
        Refusal::Full => {
            let message = "the tenant's sessions have used up their room".to_owned();
            (FailureCode::LIMIT, message, "delete some, or have the operator raise limits.sessions_mib")
        }
        Refusal::Conflict => {
            let message = "a message with this id is in another session, or says something else".to_owned();
            (FailureCode::CONFLICT, message, "give each message an id of its own")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use belay_protocol::id::RequestId;
    use belay_protocol::message::{Extension, Operation};

    #[test]
    fn how_much_history_is_wanted_is_a_number_or_an_error() {
        let wanted = |value: Option<&[u8]>| {
            let extension = |value: &[u8]| Extension { kind: escalate::HISTORY_TOKENS, value: value.to_vec() };
            wanted_history(&EscalateRequest {
                request_id: RequestId([1; 16]),
                session_id: None,
                operation: Operation::CHAT,
                dialect: Dialect::PROMPT,
                model: String::new(),
                stream: true,
                max_output_tokens: None,
                may_reduce_output: false,
                cost_cap: None,
                deadline_ms: None,
                headers: vec![],
                body_len: 0,
                extensions: value.map(extension).into_iter().collect(),
            })
        };
        assert_eq!(wanted(None), Ok(None));
        assert_eq!(wanted(Some(&[0x2c, 1, 0, 0])), Ok(Some(300)));
        for wrong in [&[][..], &[1], &[0; 5]] {
            assert!(wanted(Some(wrong)).is_err());
        }
    }
}
