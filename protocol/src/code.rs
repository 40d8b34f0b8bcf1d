//! Codes of replies and connection closes. The table with meaning and
//! client action per code is in `docs/WIRE.md`.
//!
//! Knows no message. Tested exhaustively below; a test holds the tables of
//! `docs/WIRE.md` to these.

// `stringify!` gives the CamelCase name; `name()` must print the SCREAMING_SNAKE
// form, so that form is computed once per variant at compile time.
macro_rules! screaming {
    ($variant:ident) => {{
        const CAMEL: &str = stringify!($variant);
        const LEN: usize = $crate::code::screaming_len(CAMEL);
        const BYTES: [u8; LEN] = $crate::code::screaming_bytes::<LEN>(CAMEL);
        const NAME: &str = match std::str::from_utf8(&BYTES) {
            Ok(name) => name,
            Err(_) => CAMEL,
        };
        NAME
    }};
}

macro_rules! wire_enum {
    ($(#[$doc:meta])* $name:ident: $repr:ty { $($(#[$vdoc:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        #[repr($repr)]
        pub enum $name { $($(#[$vdoc])* $variant = $value,)* }

        impl $name {
            /// Every value, in numeric order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Reads the value from the wire; `None` when it is not in the table.
            pub fn from_wire(raw: $repr) -> Option<Self> {
                match raw { $($value => Some(Self::$variant),)* _ => None }
            }

            /// The value as it stands on the wire.
            pub fn wire(self) -> $repr { self as $repr }

            /// The value's name in SCREAMING_SNAKE_CASE, as docs, JSON and metrics print it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $crate::code::screaming!($variant),)* }
            }
        }
    };
}

pub(crate) use {screaming, wire_enum};

pub(crate) const fn screaming_len(camel: &str) -> usize {
    let bytes = camel.as_bytes();
    let (mut at, mut len) = (0, 0);
    while at < bytes.len() {
        len += if at > 0 && bytes[at].is_ascii_uppercase() { 2 } else { 1 };
        at += 1;
    }
    len
}

pub(crate) const fn screaming_bytes<const N: usize>(camel: &str) -> [u8; N] {
    let bytes = camel.as_bytes();
    let mut out = [0; N];
    let (mut at, mut to) = (0, 0);
    while at < bytes.len() {
        if at > 0 && bytes[at].is_ascii_uppercase() {
            out[to] = b'_';
            to += 1;
        }
        out[to] = bytes[at].to_ascii_uppercase();
        to += 1;
        at += 1;
    }
    out
}

wire_enum! {
    /// First level of every reply: was the request carried out, and if not, why.
    /// Whether money could have moved is told by [`Code::may_have_acted`].
    Code: u16 {
        /// Carried out; the business state says with what result.
        Ok = 0,
        /// The frame header is not a frame of this protocol.
        MalformedFrame = 100,
        /// The body is longer than 16 KiB.
        FrameTooLarge = 101,
        /// No such message kind.
        UnknownKind = 102,
        /// The body ends early or a length is inconsistent.
        MalformedBody = 103,
        /// A field's value is outside its alphabet, table or range.
        InvalidField = 104,
        /// The amount is zero, negative or above the maximum.
        InvalidAmount = 105,
        /// No such merchant, or not at this deployment.
        UnknownMerchant = 200,
        /// The merchant has no live key of that id.
        UnknownKey = 201,
        /// The signature does not match the canonical form.
        BadSignature = 202,
        /// The timestamp is outside the accepted window.
        StaleTimestamp = 203,
        /// This gateway certificate may not speak for the merchant.
        GatewayNotAllowed = 204,
        /// The peer's address is outside the merchant's ranges.
        AddressNotAllowed = 205,
        /// The merchant may not do this in its present status.
        MerchantNotActive = 206,
        /// `time_expire` has passed, or leaves no time to pay.
        Expired = 300,
        /// Same number, other content.
        IdempotencyConflict = 301,
        /// No such payment.
        OrderNotFound = 302,
        /// The payment has no final outcome yet; close or reverse it, or ask again.
        OrderNotFinal = 303,
        /// The payment is failed or closed: nothing to refund.
        NotPaid = 304,
        /// The payment is paid: refund it, it cannot be closed.
        OrderPaid = 305,
        /// A reversal is under way or done: refunds are refused.
        OrderCancelling = 306,
        /// Refunds exist: the payment cannot be reversed.
        HasRefund = 307,
        /// Refunded, reserved and this amount exceed what was paid.
        RefundExceedsPaid = 308,
        /// The payment has its maximum number of refunds.
        RefundTooMany = 309,
        /// The refund or reversal window has closed.
        WindowClosed = 310,
        /// No such refund.
        RefundNotFound = 311,
        /// No route: no channel takes this method, currency and amount.
        NoRoute = 312,
        /// The amount's tier demands a second signature.
        SecondSignatureRequired = 313,
        /// The currency differs from the payment's.
        CurrencyMismatch = 314,
        /// The risk rules reject the payment.
        RiskRejected = 315,
        /// The merchant's rate for this operation is used up; see `retry_after_ms`.
        RateLimited = 400,
        /// The merchant's daily amount cap would be exceeded.
        DailyCapExceeded = 401,
        /// The amount is above the merchant's single-payment limit.
        SingleLimitExceeded = 402,
        /// The switch sheds load: the queue is older than its bound.
        Overloaded = 500,
        /// This connection has its maximum of unanswered requests.
        TooManyInFlight = 501,
        /// The only eligible channels are down or full.
        ChannelUnavailable = 502,
        /// The log's disk is full: no new payments and refunds, queries still answered.
        StorageFull = 503,
        /// The shard holds its maximum number of payments.
        CapacityReached = 504,
        /// The site is stopping.
        Draining = 505,
        /// The client's deadline cannot be met.
        DeadlineUnreachable = 506,
        /// Another site leads this shard; see the hint.
        NotLeader = 600,
        /// The shard has no leader at present.
        NoLeader = 601,
        /// A defect of the switch; nothing was started.
        Internal = 700,
    }
}

impl Code {
    /// Whether this request, or an earlier copy of it that was forwarded, may
    /// have moved money. `false` speaks of this request only: what became of an
    /// earlier one with the same number is asked by query.
    pub fn may_have_acted(self) -> bool {
        matches!(self, Self::Ok | Self::NotLeader | Self::NoLeader)
    }

    /// Whether the same request may be sent again as it is, later or elsewhere.
    pub fn retryable(self) -> bool {
        matches!(self.wire(), 400 | 500..=506 | 600 | 601)
    }
}

wire_enum! {
    /// What the merchant sees of a payment; `docs/WIRE.md`, 6.1.
    OrderState: u8 {
        /// No order: the request was refused before one existed.
        None = 0,
        /// An outcome is being obtained.
        Processing = 1,
        /// The payer has to act.
        WaitPayer = 2,
        /// Paid. Final.
        Paid = 3,
        /// Failed, nothing stands charged. Final.
        Failed = 4,
        /// Cancelled or expired, nothing stands charged. Final.
        Closed = 5,
        /// In front of an operator.
        Manual = 6,
    }
}

impl OrderState {
    /// Whether the state is never left.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Paid | Self::Failed | Self::Closed)
    }
}

wire_enum! {
    /// State of a refund.
    RefundState: u8 {
        /// No refund: the request was refused before one existed.
        None = 0,
        /// Accepted; an outcome is being obtained; the amount is reserved.
        Processing = 1,
        /// The money went back. Final.
        Success = 2,
        /// Nothing went back; the reservation is released. Final.
        Failed = 3,
        /// In front of an operator; the amount stays reserved.
        Manual = 4,
    }
}

wire_enum! {
    /// Why a payment or refund ended as it did.
    Reason: u16 {
        /// Nothing to say.
        None = 0,
        /// The channel declined for the payer's balance.
        InsufficientFunds = 1,
        /// The channel declined on its risk rules.
        ChannelRisk = 2,
        /// The channel does not know or accept the payer token.
        PayerInvalid = 3,
        /// The channel declined for another reason.
        ChannelDeclined = 4,
        /// Nothing stands charged and no channel declined: none could be reached,
        /// or what was sent never arrived or was undone.
        NotSent = 5,
        /// The merchant closed or reversed it.
        Cancelled = 6,
        /// `time_expire` passed.
        Expired = 7,
        /// An operator decided.
        Operator = 8,
        /// The channel's amount, currency or number differs: waits for an operator.
        Integrity = 9,
        /// The channel gave no definite answer within the budget: waits for an operator.
        BudgetSpent = 10,
        /// Paid before the cancel took effect and the channel cannot reverse.
        CancelRefused = 11,
    }
}

wire_enum! {
    /// How the payer pays.
    Method: u8 {
        /// A wallet balance or token.
        Wallet = 1,
        /// A bank card, as a token.
        Card = 2,
        /// An account transfer.
        Bank = 3,
        /// The merchant scans the payer's code (face to face).
        Micropay = 4,
        /// The payer scans the merchant's code.
        QrCode = 5,
    }
}

wire_enum! {
    /// Where the payment happens.
    Scene: u8 {
        /// A shop counter.
        Pos = 1,
        /// A web page.
        Web = 2,
        /// A mobile application.
        App = 3,
        /// An unattended device.
        Unattended = 4,
        /// A recurring charge.
        Recurring = 5,
    }
}

wire_enum! {
    /// QUIC application close codes. A closed connection never means
    /// "not processed": ask by query.
    CloseCode: u32 {
        /// Normal end.
        Normal = 0,
        /// The site stops, or the connection is too old: connect anew.
        Draining = 1,
        /// The peer broke the protocol.
        ProtocolError = 2,
        /// A frame above the size limit.
        FrameTooLarge = 3,
        /// The certificate names no role that may speak here.
        NotAuthorised = 4,
        /// The certificate expired or was withdrawn.
        CredentialRevoked = 5,
        /// Too many connections of this identity, or in total.
        TooManyConnections = 6,
        /// The peer ignores back-pressure.
        Overload = 7,
        /// The peer does not read its replies, or leaves a frame unfinished.
        SlowPeer = 8,
        /// Another site or epoch.
        WrongSite = 9,
        /// A defect of the switch.
        Internal = 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_reads_back_and_nothing_else_reads() {
        fn known(raw: u16) -> Option<Code> {
            Code::ALL.iter().copied().find(|code| code.wire() == raw)
        }
        for raw in 0..=u16::MAX {
            assert_eq!(Code::from_wire(raw), known(raw));
            assert_eq!(Reason::from_wire(raw).map(Reason::wire), (raw <= 11).then_some(raw));
        }
        for raw in 0..=u8::MAX {
            assert_eq!(OrderState::from_wire(raw).map(OrderState::wire), (raw <= 6).then_some(raw));
            assert_eq!(
                RefundState::from_wire(raw).map(RefundState::wire),
                (raw <= 4).then_some(raw)
            );
            let one_to_five = (1..=5).contains(&raw).then_some(raw);
            assert_eq!(Method::from_wire(raw).map(Method::wire), one_to_five);
            assert_eq!(Scene::from_wire(raw).map(Scene::wire), one_to_five);
        }
        for raw in 0..1000 {
            assert_eq!(CloseCode::from_wire(raw).map(CloseCode::wire), (raw <= 10).then_some(raw));
        }
    }

    #[test]
    fn names_are_screaming_snake() {
        assert_eq!(Code::Ok.name(), "OK");
        assert_eq!(Code::SecondSignatureRequired.name(), "SECOND_SIGNATURE_REQUIRED");
        assert_eq!(OrderState::WaitPayer.name(), "WAIT_PAYER");
        assert_eq!(Method::QrCode.name(), "QR_CODE");
    }

    #[test]
    fn retry_and_money_are_told_by_code() {
        let retryable: Vec<_> =
            Code::ALL.iter().filter(|c| c.retryable()).map(|c| c.wire()).collect();
        assert_eq!(retryable, [400, 500, 501, 502, 503, 504, 505, 506, 600, 601]);
        let acted: Vec<_> =
            Code::ALL.iter().filter(|c| c.may_have_acted()).map(|c| c.wire()).collect();
        assert_eq!(acted, [0, 600, 601]);
    }
}
