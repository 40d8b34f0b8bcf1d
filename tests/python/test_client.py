"""Pays, queries and refunds against a running switch.

Prints one line per step; exits 0 when every answer is as demanded.
"""

import argparse
import asyncio
import os
import time

import test_vectors
from payswitch_client import CLOSE, PAY, QUERY, QUERY_REFUND, REFUND, Client

OK, BAD_SIGNATURE, IDEMPOTENCY_CONFLICT, ORDER_NOT_FOUND = 0, 202, 301, 302
ORDER_PAID, REFUND_EXCEEDS_PAID = 305, 308


def demand(step, reply, **wanted):
    """Every named field of the reply must have the wanted value."""
    wrong = {name: reply.get(name) for name, value in wanted.items() if reply.get(name) != value}
    if wrong:
        raise SystemExit(f"{step}: {wrong} where {wanted} was demanded; reply {reply}")
    print(f"{step}: ok")


async def settle(client, kind, fields, reply, open_states):
    """Asks again until the state is final; the switch may answer early."""
    deadline = time.monotonic() + 30
    while reply["code"] == OK and reply["state"] in open_states and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        reply = await client.request(kind, fields)
    return reply


async def run(client):
    number = "py-" + os.urandom(8).hex()
    pong = await client.ping(4711)
    demand("ping", pong, token=4711)

    pay = {
        "out_trade_no": number,
        "amount": 1999,
        "currency": "CNY",
        "method": "WALLET",
        "scene": "APP",
        "payer_token": "tok_python",
        "device_id": "till 3",
        "client_ip": bytes(10) + b"\xff\xff\x0a\x00\x00\x01",
        "time_expire": int(time.time() * 1000) + 600_000,
        "tags": {"branch": "7", "client": "python"},
    }
    reply = await client.request(PAY, pay)
    reply = await settle(client, PAY, pay, reply, ("PROCESSING", "WAIT_PAYER"))
    demand("pay", reply, code=OK, state="PAID", amount=1999, currency="CNY", refunded=0)
    transaction = reply["transaction_id"]
    if len(str(transaction)) != 18:
        raise SystemExit(f"transaction_id {transaction} has not 18 digits")

    reply = await client.request(PAY, pay)
    demand("pay again", reply, code=OK, state="PAID", replayed=True, transaction_id=transaction)
    reply = await client.request(PAY, dict(pay, amount=2000))
    demand("pay, other amount", reply, code=IDEMPOTENCY_CONFLICT, state="NONE")

    by_number, by_id = {"out_trade_no": number}, {"transaction_id": transaction}
    for step, ref in (("query by number", by_number), ("query by transaction", by_id)):
        reply = await client.request(QUERY, ref)
        demand(step, reply, code=OK, state="PAID", transaction_id=transaction, out_trade_no=number)
    reply = await client.request(QUERY, {"out_trade_no": number + "x"})
    demand("query, unknown", reply, code=ORDER_NOT_FOUND, state="NONE")
    reply = await client.request(CLOSE, by_number)
    demand("close, paid", reply, code=ORDER_PAID)

    refund = {
        "out_trade_no": number,
        "out_refund_no": number + "-r1",
        "amount": 999,
        "currency": "CNY",
        "reason": "one item is missing",
    }
    reply = await client.request(REFUND, refund)
    reply = await settle(client, REFUND, refund, reply, ("PROCESSING",))
    demand("refund", reply, code=OK, state="SUCCESS", amount=999, refunded=999, refunding=0)
    reply = await client.request(
        QUERY_REFUND, {"out_trade_no": number, "out_refund_no": number + "-r1"}
    )
    demand("query refund", reply, code=OK, state="SUCCESS", transaction_id=transaction)
    reply = await client.request(REFUND, dict(refund, out_refund_no=number + "-r2", amount=1001))
    demand("refund, too much", reply, code=REFUND_EXCEEDS_PAID, state="NONE")
    reply = await client.request(QUERY, by_id)
    demand("query, partly refunded", reply, code=OK, state="PAID", refunded=999)

    client.secret = b"not the merchant's secret, at all"
    reply = await client.request(PAY, dict(pay, out_trade_no=number + "-bad"))
    demand("pay, wrong key", reply, code=BAD_SIGNATURE, state="NONE")


async def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--server-name", default="site-1.site.payswitch")
    for name in ("--ca", "--cert", "--key", "--mch", "--secret"):
        parser.add_argument(name, required=True)
    parser.add_argument("--key-id", type=int, required=True)
    args = parser.parse_args()
    test_vectors.main(test_vectors.DIRECTORY)
    client = Client(
        args.host,
        args.port,
        args.server_name,
        args.ca,
        args.cert,
        args.key,
        args.mch,
        args.key_id,
        bytes.fromhex(args.secret),
    )
    async with client:
        print(f"hello: site {client.hello['site']} of {client.hello['sites']}")
        await run(client)


if __name__ == "__main__":
    asyncio.run(main())
