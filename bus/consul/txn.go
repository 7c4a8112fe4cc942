package consul

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/gatemesh/gatemesh/bus"
)

const (
	// maxOps is what every version of Consul takes; 1.22 takes 128.
	maxOps = 64
	// maxBody is what Consul takes as the JSON of one transaction, values in
	// base64 (txn_max_req_len, by default Raft's suggested entry size).
	maxBody = 512 << 10
	// maxBytes is the sum of values that always fits into maxBody: in base64 they
	// take 490.7 KiB, and the rest is 340 bytes for each of 64 operations, 150 of
	// them JSON around the key. (384 KiB would be exactly maxBody before the
	// first key.)
	maxBytes = 368 << 10
	// opFrame is more than the JSON around the key, value and session of one op.
	opFrame = 192
)

// noOne is a session id that Consul never gives out.
const noOne = "no session"

var verbs = map[bus.Verb]api.KVOp{
	bus.OpSet:            api.KVSet,
	bus.OpCAS:            api.KVCAS,
	bus.OpGet:            api.KVGetOrEmpty,
	bus.OpDelete:         api.KVDelete,
	bus.OpDeleteCAS:      api.KVDeleteCAS,
	bus.OpDeleteTree:     api.KVDeleteTree,
	bus.OpLock:           api.KVLock,
	bus.OpUnlock:         api.KVUnlock,
	bus.OpCheckSession:   api.KVCheckSession,
	bus.OpCheckIndex:     api.KVCheckIndex,
	bus.OpCheckNotExists: api.KVCheckNotExists,
}

// Limits implements bus.Store: 64 operations, 368 KiB of values. With keys of more
// than 150 bytes in many operations a transaction within them may still be
// bus.ErrTooLarge.
func (s *Store) Limits() bus.Limits { return bus.Limits{Ops: maxOps, Bytes: maxBytes} }

// Txn implements bus.Store: one Raft entry, on a majority of the servers' disks
// when it returns. Without any writing op it is a plain read.
//
// Beyond the contract: a lock for a session that has ended is both a *bus.TxnError
// and bus.ErrNoSession. bus.ErrForbidden means that nothing was written, with one
// exception that its text names: a token that may write some keys of the
// transaction but not read another one's value.
func (s *Store) Txn(ctx context.Context, ops []bus.Op) ([]bus.Pair, error) {
	if len(ops) == 0 {
		return nil, nil
	}
	send, err := convert(ops)
	if err != nil {
		return nil, err
	}
	c, err := s.begin(ctx, describe(ops), s.timeout)
	if err != nil {
		return nil, err
	}
	defer c.end()
	// Without a write it is a read like another one, and no entry of the log orders it.
	ok, resp, _, err := s.calls.Txn().Txn(send, c.consistent())
	if err != nil {
		return nil, s.fail(c, err)
	}
	if !ok {
		return nil, s.rolledBack(c, resp.Errors)
	}
	return s.align(c, ops, resp.Results)
}

// describe names a transaction in errors.
func describe(ops []bus.Op) string {
	text := "txn " + ops[0].Verb.String() + " " + ops[0].Key
	if n := len(ops) - 1; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text
}

// convert makes Consul's form of the ops, and checks before anything is sent what
// Consul would refuse.
func convert(ops []bus.Op) (api.TxnOps, error) {
	if len(ops) > maxOps {
		return nil, fmt.Errorf("%w: %d operations in a transaction (at most %d)", bus.ErrTooLarge, len(ops), maxOps)
	}
	values, body := 0, 0
	send := make(api.TxnOps, len(ops))
	for i, op := range ops {
		verb, ok := verbs[op.Verb]
		if !ok {
			return nil, fmt.Errorf("op %d: unknown verb %d", i, op.Verb)
		}
		check := checkKey
		if op.Verb == bus.OpDeleteTree {
			check = checkPrefix
		}
		if err := check(op.Key); err != nil {
			return nil, fmt.Errorf("op %d: %w", i, err)
		}
		kv := &api.KVTxnOp{Verb: verb, Key: op.Key}
		// Only what the verb uses: Consul hands back an op's own index and
		// session as those of a key that is not there.
		switch op.Verb {
		case bus.OpSet, bus.OpLock, bus.OpUnlock:
			kv.Value = op.Value
		case bus.OpCAS:
			kv.Value, kv.Index = op.Value, op.Index
		case bus.OpDeleteCAS, bus.OpCheckIndex:
			kv.Index = op.Index
		}
		switch op.Verb {
		case bus.OpLock, bus.OpUnlock, bus.OpCheckSession:
			kv.Session = op.Session
		}
		if op.Verb == bus.OpCheckSession && op.Session == "" {
			// For Consul a key without a lock is held by the session "": a fence
			// that lets through whoever never had a lock.
			kv.Session = noOne
		}
		values += len(kv.Value)
		body += opFrame + len(op.Key) + len(kv.Session) + base64.StdEncoding.EncodedLen(len(kv.Value))
		send[i] = &api.TxnOp{KV: kv}
	}
	if values > maxBytes {
		return nil, fmt.Errorf("%w: %d bytes of values in a transaction (at most %d)", bus.ErrTooLarge, values, maxBytes)
	}
	if body > maxBody {
		// The estimate is high, and knows nothing of characters that JSON escapes;
		// those are left to Consul's own check.
		if raw, err := json.Marshal(send); err == nil && len(raw)+1 > maxBody {
			return nil, fmt.Errorf("%w: a transaction of %d bytes as JSON (at most %d)", bus.ErrTooLarge, len(raw)+1, maxBody)
		}
	}
	return send, nil
}

// rolledBack makes the error of a transaction that Consul refused.
func (s *Store) rolledBack(c *call, errs api.TxnErrors) error {
	refused := &bus.TxnError{}
	for _, e := range errs {
		// Prefixes: the rest may quote a key, which may say anything.
		if strings.HasPrefix(e.What, "Permission denied") {
			// No competing write: trying again cannot help.
			return s.failed(c, bus.ErrForbidden, nil, fmt.Sprintf("op %d: %s", e.OpIndex, e.What), s.hintForbidden(e.What))
		}
		refused.Failed = append(refused.Failed, bus.FailedOp{Op: e.OpIndex, What: e.What})
	}
	for _, e := range errs {
		if strings.HasPrefix(e.What, "invalid session") || strings.HasPrefix(e.What, "missing session") {
			return s.failed(c, bus.ErrNoSession, refused, fmt.Sprintf("op %d: %s", e.OpIndex, e.What), "")
		}
	}
	return refused
}

// align gives every op its Pair. Consul answers in the order of the ops but leaves
// some out: deletes and check-not-exists always, and a get whose key the token may
// not read. (A key is readable in all ops of a transaction or in none, so a
// result with an op's key is that op's.)
func (s *Store) align(c *call, ops []bus.Op, results api.TxnResults) ([]bus.Pair, error) {
	var kvs []*api.KVPair
	for _, r := range results {
		if r != nil && r.KV != nil {
			kvs = append(kvs, r.KV)
		}
	}
	pairs := make([]bus.Pair, len(ops))
	for i, op := range ops {
		pairs[i].Key = op.Key
		switch op.Verb {
		case bus.OpDelete, bus.OpDeleteCAS, bus.OpDeleteTree, bus.OpCheckNotExists:
			continue
		}
		if len(kvs) == 0 || kvs[0].Key != op.Key {
			if op.Verb == bus.OpGet {
				text := fmt.Sprintf("op %d: the token may not read %s", i, op.Key)
				for _, o := range ops {
					if o.Writes() {
						text += "; the transaction's writes were applied"
						break
					}
				}
				return nil, s.failed(c, bus.ErrForbidden, nil, text, hintRules)
			}
			return nil, s.failed(c, bus.ErrUnavailable, nil, fmt.Sprintf("the answer has no result for op %d (%s %s)", i, op.Verb, op.Key), "")
		}
		kv := kvs[0]
		kvs = kvs[1:]
		switch op.Verb {
		case bus.OpCheckSession, bus.OpCheckIndex:
			// Only the key, as for the checks that Consul does not answer.
		case bus.OpGet:
			if pairs[i] = pairOf(kv); kv.CreateIndex == 0 {
				pairs[i] = bus.Pair{} // no such key: Consul echoes the question
			}
		default:
			pairs[i] = pairOf(kv)
			pairs[i].Value = nil
		}
	}
	if len(kvs) > 0 {
		return nil, s.failed(c, bus.ErrUnavailable, nil, fmt.Sprintf("the answer has %d results too many", len(kvs)), "")
	}
	return pairs, nil
}
