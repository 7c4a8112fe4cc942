package envelope

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"time"
)

// This file is the short way through the codec, for envelopes as almost all are: plain
// ASCII header fields. What it does not know it leaves to encoding/json, which decides what is right;
// TestFastDecodeAgrees and TestFastEncodeAgrees hold the two together.

// appendJSON appends e as Encode would write it, or reports that it cannot. text: the payload is known to be a plain string.
func (e *Envelope) appendJSON(b []byte, text bool) ([]byte, bool) {
	if !plain(e.ConversationID) || !plain(e.Capability) || !plain(e.Traceparent) || e.Budget != nil || e.Task != nil || !text && !goodPayload(e.Payload) {
		return b, false
	}
	str := func(name, v string) {
		b = append(b, name...)
		b = append(b, v...)
		b = append(b, '"')
	}
	opt := func(name, v string) {
		if v != "" {
			str(name, v)
		}
	}
	str(`{"schema_version":"`, e.SchemaVersion)
	str(`,"message_id":"`, e.MessageID)
	str(`,"correlation_id":"`, e.CorrelationID)
	str(`,"conversation_id":"`, e.ConversationID)
	opt(`,"in_reply_to":"`, e.InReplyTo)
	opt(`,"reply_to":"`, e.ReplyTo)
	str(`,"source_gateway":"`, e.SourceGateway)
	str(`,"source_agent":"`, e.SourceAgent)
	opt(`,"target_gateway":"`, e.TargetGateway)
	str(`,"target_agent":"`, e.TargetAgent)
	opt(`,"capability":"`, e.Capability)
	b = append(b, `,"payload":`...)
	b = append(b, e.Payload...)
	b = append(b, `,"created_at":"`...)
	b = e.CreatedAt.appendText(b)
	b = append(b, `","ttl":`...)
	b = strconv.AppendInt(b, int64(e.TTL), 10)
	b = append(b, `,"max_hops":`...)
	b = strconv.AppendInt(b, int64(e.MaxHops), 10)
	num := func(name string, n int64) {
		if n != 0 {
			b = append(b, name...)
			b = strconv.AppendInt(b, n, 10)
		}
	}
	num(`,"max_attempts":`, int64(e.MaxAttempts))
	num(`,"ack_timeout":`, int64(e.AckTimeout))
	num(`,"retry_delay":`, int64(e.RetryDelay))
	num(`,"payload_size":`, e.PayloadSize)
	opt(`,"payload_sha256":"`, e.PayloadSHA256)
	if e.Terminal {
		b = append(b, `,"terminal":true`...)
	}
	b = e.Encryption.appendJSON(b)
	opt(`,"traceparent":"`, e.Traceparent)
	return append(b, '}'), true
}

// plain reports whether s stands in JSON as it is.
func plain[S string | []byte](s S) bool {
	// Eight bytes at a time: a payload is looked at when it is sealed and when it is read, and byte by byte that was a twentieth of the work
	// of a message. A byte is bad below ' ', above '~', and as '"' or '\\'; what one bad byte borrows or carries makes no good word bad.
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	for ; len(s) >= 8; s = s[8:] {
		x := uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 | uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
		quote, slash := x^('"'*ones), x^('\\'*ones)
		if ((x-' '*ones)&^x|x|(x+ones)|(quote-ones)&^quote|(slash-ones)&^slash)&highs != 0 {
			return false
		}
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// plainString reports whether p is a JSON string of plain characters.
func plainString(p []byte) bool {
	return len(p) >= 2 && p[0] == '"' && p[len(p)-1] == '"' && plain(p[1:len(p)-1])
}

// goodPayload reports whether p is JSON; without white space outside strings an encoder leaves it
// as it is.
func goodPayload(p []byte) bool { return plainString(p) || json.Valid(p) }

// decodeOrdered reads what appendJSON writes of a message whose payload is plain text, in that order, or reports that it is something
// else; then e is to be thrown away. What it takes is canonical by its form: plain ASCII, no key twice, nothing between the tokens, no value
// that means "absent". So who reads it need not look at the bytes again for that.
func (e *Envelope) decodeOrdered(b []byte) bool {
	const before, after = `,"payload":"`, `,"created_at":"`
	n := bytes.Index(b, []byte(before))
	if n < 0 {
		return false
	}
	head, rest, ok := string(b[:n]), b[n+len(before):], true // one string, which its fields are parts of
	str := func(name string, to *string, optional bool) {
		v, found := strings.CutPrefix(head, name)
		if !found {
			ok = ok && optional
			return
		}
		end := strings.IndexByte(v, '"')
		if ok = ok && end > 0 && plain(v[:end]); ok {
			*to, head = v[:end], v[end+1:]
		}
	}
	str(`{"schema_version":"`, &e.SchemaVersion, false)
	str(`,"message_id":"`, &e.MessageID, false)
	str(`,"correlation_id":"`, &e.CorrelationID, false)
	str(`,"conversation_id":"`, &e.ConversationID, false)
	str(`,"in_reply_to":"`, &e.InReplyTo, true)
	str(`,"reply_to":"`, &e.ReplyTo, true)
	str(`,"source_gateway":"`, &e.SourceGateway, false)
	str(`,"source_agent":"`, &e.SourceAgent, false)
	str(`,"target_gateway":"`, &e.TargetGateway, true)
	str(`,"target_agent":"`, &e.TargetAgent, false)
	str(`,"capability":"`, &e.Capability, true)
	end := bytes.IndexByte(rest, '"')
	if !ok || head != "" || end < 0 || !plain(rest[:end]) {
		return false
	}
	e.Payload = b[n+len(before)-1 : n+len(before)+end+1 : n+len(before)+end+1]
	if rest, ok = bytes.CutPrefix(rest[end+1:], []byte(after)); !ok || len(rest) < len(timeLayout)+2 || rest[len(timeLayout)] != '"' {
		return false
	}
	if e.CreatedAt, ok = parseTime(rest[:len(timeLayout)]); !ok {
		return false
	}
	rest = rest[len(timeLayout)+1:]
	num := func(name string, optional bool) (n int64) {
		v, found := bytes.CutPrefix(rest, []byte(name))
		if ok = ok && (found || optional); !ok || !found {
			return 0
		}
		end := 0
		for end < len(v) && v[end] >= '0' && v[end] <= '9' {
			end++
		}
		n, ok = smallNumber(v[:end])
		rest = v[end:]
		return n
	}
	e.TTL = Millis(num(`,"ttl":`, false))
	e.MaxHops = int(num(`,"max_hops":`, false))
	e.MaxAttempts = int(num(`,"max_attempts":`, true))
	e.AckTimeout = Millis(num(`,"ack_timeout":`, true))
	e.RetryDelay = Millis(num(`,"retry_delay":`, true))
	rest, e.Terminal = bytes.CutPrefix(rest, []byte(`,"terminal":true`))
	if v, found := bytes.CutPrefix(rest, []byte(`,"traceparent":"`)); ok && found {
		end := bytes.IndexByte(v, '"')
		if end <= 0 || !plain(v[:end]) {
			return false
		}
		e.Traceparent, rest = string(v[:end]), v[end+1:]
	}
	return ok && string(rest) == "}"
}

// appendText appends t in timeLayout. Only for what is plausible.
func (t Time) appendText(b []byte) []byte {
	u := t.UTC()
	year, month, day := u.Date()
	hour, minute, second := u.Clock()
	two := func(n int, end byte) { b = append(b, byte('0'+n/10), byte('0'+n%10), end) }
	two(year/100, byte('0'+year/10%10))
	b = append(b, byte('0'+year%10), '-')
	two(int(month), '-')
	two(day, 'T')
	two(hour, ':')
	two(minute, ':')
	two(second, '.')
	ms := u.Nanosecond() / int(time.Millisecond)
	return append(b, byte('0'+ms/100), byte('0'+ms/10%10), byte('0'+ms%10), 'Z')
}

// parseTime reads a moment as this package writes it, and nothing else.
func parseTime(b []byte) (Time, bool) {
	const digits = "dddd-dd-ddTdd:dd:dd.dddZ"
	if len(b) != len(digits) {
		return Time{}, false
	}
	for i := range b {
		if d := digits[i]; d == 'd' && (b[i] < '0' || b[i] > '9') || d != 'd' && b[i] != d {
			return Time{}, false
		}
	}
	n := func(from, to int) (n int) {
		for _, c := range b[from:to] {
			n = n*10 + int(c-'0')
		}
		return n
	}
	month, day, hour, minute, second := n(5, 7), n(8, 10), n(11, 13), n(14, 16), n(17, 19)
	if hour > 23 || minute > 59 || second > 59 {
		return Time{}, false
	}
	t := time.Date(n(0, 4), time.Month(month), day, hour, minute, second, n(20, 23)*int(time.Millisecond), time.UTC)
	if int(t.Month()) != month || t.Day() != day {
		return Time{}, false // the 30th of February is made another day
	}
	return Time{t}, true
}

// decodeFast reads canonical bytes into e, or reports that it cannot; then e is to be thrown away.
func (e *Envelope) decodeFast(b []byte) bool {
	if len(b) < 2 || b[0] != '{' || b[len(b)-1] != '}' {
		return false
	}
	rest := b[1 : len(b)-1]
	for len(rest) > 0 {
		if rest[0] != '"' {
			return false
		}
		end := stringEnd(rest, 0)
		if end+1 >= len(rest) || rest[end+1] != ':' {
			return false
		}
		key, value := rest[1:end], rest[end+2:]
		if len(value) == 0 {
			return false
		}
		var n int // the value's length
		switch value[0] {
		case '"':
			if n = stringEnd(value, 0) + 1; n > len(value) {
				return false
			}
		case '{', '[':
			if n = nestedEnd(value); n < 0 {
				return false
			}
		default:
			if n = bytes.IndexByte(value, ','); n < 0 {
				n = len(value)
			}
		}
		rest = value[n:]
		value = value[:n:n]
		if len(rest) > 0 {
			if rest[0] != ',' || len(rest) == 1 {
				return false
			}
			rest = rest[1:]
		}
		if !e.setField(string(key), value) {
			return false
		}
	}
	return true
}

// nestedEnd returns the length of the object or array that b starts with, going by brackets and
// strings alone, or -1.
func nestedEnd(b []byte) int {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
		case '"':
			i = stringEnd(b, i)
		}
	}
	return -1
}

// setField reads one value: a plain string, a small number or true.
func (e *Envelope) setField(key string, value []byte) bool {
	var s *string
	switch key {
	case "schema_version":
		s = &e.SchemaVersion
	case "message_id":
		s = &e.MessageID
	case "correlation_id":
		s = &e.CorrelationID
	case "conversation_id":
		s = &e.ConversationID
	case "in_reply_to":
		s = &e.InReplyTo
	case "reply_to":
		s = &e.ReplyTo
	case "source_gateway":
		s = &e.SourceGateway
	case "source_agent":
		s = &e.SourceAgent
	case "target_gateway":
		s = &e.TargetGateway
	case "target_agent":
		s = &e.TargetAgent
	case "capability":
		s = &e.Capability
	case "traceparent":
		s = &e.Traceparent
	case "payload_sha256":
		s = &e.PayloadSHA256
	case "payload":
		e.Payload = json.RawMessage(value)
		return goodPayload(value)
	case "created_at":
		return plainString(value) && e.CreatedAt.UnmarshalJSON(value) == nil
	case "ttl":
		n, ok := smallNumber(value)
		e.TTL = Millis(n)
		return ok
	case "max_hops":
		n, ok := smallNumber(value)
		e.MaxHops = int(n)
		return ok
	case "max_attempts":
		n, ok := smallNumber(value)
		e.MaxAttempts = int(n)
		return ok
	case "ack_timeout":
		n, ok := smallNumber(value)
		e.AckTimeout = Millis(n)
		return ok
	case "retry_delay":
		n, ok := smallNumber(value)
		e.RetryDelay = Millis(n)
		return ok
	case "payload_size":
		n, ok := smallNumber(value)
		e.PayloadSize = n
		return ok
	case "encryption":
		e.Encryption = new(Encryption)
		return e.Encryption.decodeFast(value)
	case "terminal":
		e.Terminal = string(value) == "true"
		return e.Terminal
	default:
		return false
	}
	if !plainString(value) {
		return false
	}
	*s = string(value[1 : len(value)-1])
	return true
}

// appendJSON appends an encryption that was validated: nothing in it needs to be escaped.
func (c *Encryption) appendJSON(b []byte) []byte {
	if c == nil {
		return b
	}
	b = append(b, `,"encryption":{"suite":"`...)
	b = append(b, c.Suite...)
	b = append(b, `","salt":"`...)
	b = append(b, c.Salt...)
	b = append(b, `","keys":[`...)
	for i, k := range c.Keys {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '"')
		b = append(b, k...)
		b = append(b, '"')
	}
	return append(b, `]}`...)
}

// decodeFast reads what appendJSON writes, in that order, or reports that it is something else.
func (c *Encryption) decodeFast(b []byte) bool {
	text := func(before string) (s string, ok bool) {
		if b, ok = bytes.CutPrefix(b, []byte(before)); !ok {
			return "", false
		}
		n := bytes.IndexByte(b, '"')
		if n < 0 || !plain(b[:n]) {
			return "", false
		}
		s, b = string(b[:n]), b[n+1:]
		return s, true
	}
	var ok bool
	if c.Suite, ok = text(`{"suite":"`); !ok {
		return false
	}
	if c.Salt, ok = text(`,"salt":"`); !ok {
		return false
	}
	for before := `,"keys":["`; ; before = `,"` {
		k, ok := text(before)
		if !ok {
			return false
		}
		if c.Keys = append(c.Keys, k); len(b) > 0 && b[0] == ']' {
			return string(b) == "]}"
		}
	}
}

// smallNumber reads up to 15 digits without a leading zero.
func smallNumber(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 15 || b[0] == '0' {
		return 0, false
	}
	var n int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}
