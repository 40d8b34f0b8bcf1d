//! `docs/WIRE.md` must list exactly the numbers and names that the code has.

use protocol::channel::ChannelStatus;
use protocol::code::{CloseCode, Code, Method, OrderState, Reason, RefundState, Scene};
use protocol::message::kind;

const WIRE: &str = include_str!("../../docs/WIRE.md");

/// First two columns of the table behind `<!-- name -->`, as number and name.
fn table(name: &str) -> Vec<(u64, String)> {
    let marker = format!("<!-- {name} -->\n");
    let (_, rest) = WIRE.split_once(&marker).unwrap_or_else(|| panic!("no table {name}"));
    let rows = rest.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let mut cells = row.trim_matches('|').split('|').map(str::trim);
        let number = cells.next().unwrap();
        let number = match number.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => number.parse(),
        };
        (number.unwrap(), cells.next().unwrap().trim_matches('`').to_owned())
    })
    .collect()
}

macro_rules! same {
    ($($type:ident),*) => {$(
        let code: Vec<(u64, String)> = $type::ALL
            .iter()
            .map(|value| (u64::from(value.wire()), value.name().to_owned()))
            .collect();
        assert_eq!(table(stringify!($type)), code, "{}", stringify!($type));
    )*};
}

#[test]
fn tables_list_exactly_what_the_code_has() {
    same!(CloseCode, Code, Method, Scene, OrderState, RefundState, Reason, ChannelStatus);
    let kinds = [
        (kind::HELLO, "HELLO"),
        (kind::GOAWAY, "GOAWAY"),
        (kind::PING, "PING"),
        (kind::LEADER, "LEADER"),
        (kind::PAY, "PAY"),
        (kind::QUERY, "QUERY"),
        (kind::REFUND, "REFUND"),
        (kind::QUERY_REFUND, "QUERY_REFUND"),
        (kind::CLOSE, "CLOSE"),
        (kind::REVERSE, "REVERSE"),
        (kind::SUBSCRIBE, "SUBSCRIBE"),
        (kind::EVENT, "EVENT"),
        (kind::ACK, "ACK"),
        (kind::REPLY, "REPLY"),
        (kind::ERROR, "ERROR"),
    ];
    let kinds: Vec<_> = kinds.map(|(number, name)| (u64::from(number), name.to_owned())).into();
    assert_eq!(table("kind"), kinds);
}

/// Columns `money` and `what the client does` of the code table against the code.
#[test]
fn the_code_table_tells_money_and_retry_as_the_code_does() {
    for code in Code::ALL {
        let start = format!("| {} | `{}` |", code.wire(), code.name());
        let row = WIRE.lines().find(|line| line.starts_with(&start)).unwrap();
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells[3] != "no", code.may_have_acted(), "{start}");
        assert_eq!(cells[4].starts_with("again"), code.retryable(), "{start}");
    }
}

/// The worked example is the first vector.
#[test]
fn the_worked_example_is_a_vector() {
    let vectors = include_str!("../vectors/requests.txt");
    for name in ["canonical: ", "signature: ", "key: hmac-sha256 "] {
        let value = vectors.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        assert!(WIRE.contains(value), "{name}{value}");
    }
}
