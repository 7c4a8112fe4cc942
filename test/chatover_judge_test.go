package test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// chatFigures are what the failovers of the channels came to. Times are milliseconds from the end of the owner (the signal, the cut) until another
// gateway is connected to the vendor with that account.
type chatFigures struct {
	Failovers int                       `json:"failovers"`
	Graceful  float64                   `json:"graceful_p95_ms"`
	Crash     float64                   `json:"crash_p95_ms"`
	Node      float64                   `json:"node_p95_ms"`
	Kinds     map[string]failoverFigure `json:"kinds"`
	// Messages were said by people; each was answered once, or is told of as unknown, or counts as Doubled or Lost. OutOfOrder were answered after one
	// that was said later in the same conversation, but for the Redelivered: what the vendor could not deliver at once it delivers after what came later.
	Messages     int `json:"messages"`
	AnsweredOnce int `json:"answered_once"`
	Doubled      int `json:"doubled"`
	Unknown      int `json:"unknown"`
	Lost         int `json:"lost"`
	OutOfOrder   int `json:"out_of_order"`
	Redelivered  int `json:"redelivered"`
	// Told are those of the Unknown of which who asked was told in the chat.
	Told int `json:"told"`
	// OtherAnswers are answers that nobody's question has ("Sorry, there is no answer").
	OtherAnswers int `json:"other_answers"`
	// Writes of owners to the accounts' rooms, as Consul showed them; OverlappingWrites of them by a gateway that another one had taken the lock from.
	Writes            int `json:"writes"`
	OverlappingWrites int `json:"overlapping_writes"`
	// EffectWindow is the 95th percentile, and EffectWindowMost the longest time for which a post was covered by nothing: from the store's last
	// confirmation of the ownership until what came of the post was known.
	EffectWindow     float64 `json:"effect_window_ms"`
	EffectWindowMost float64 `json:"effect_window_most_ms"`
	// ByChannel is how many questions each conversation had.
	ByChannel map[string]int `json:"by_conversation"`
}

// driveChannels ends owners of accounts, so often in each way, while people write, and counts what came of it.
func driveChannels(t *testing.T, binary string, counts map[string]int, seed uint64, say func(string, ...any)) chatFigures {
	t.Helper()
	m := newChatMesh(t, binary, seed)
	m.connect()
	m.everybody()
	fence := m.watchFence()
	quiet := m.chatter(t)
	var plan []string
	for _, kind := range []string{failGraceful, failCrash, failStop, failCut, failNode} {
		plan = append(plan, slices.Repeat([]string{kind}, counts[kind])...)
	}
	m.rng.Shuffle(len(plan), func(i, j int) { plan[i], plan[j] = plan[j], plan[i] })
	inbox := m.rng.IntN(len(chatInboxes))
	for i, kind := range plan {
		of := chatInboxes[(inbox+i)%len(chatInboxes)]
		if only := os.Getenv("GATEMESH_FAIL_ONLY"); only != "" {
			of = only
		}
		m.fail(kind, of)
		if t.Failed() {
			break
		}
		if i%10 == 9 {
			say("%d of %d failovers", i+1, len(plan))
		}
	}
	quiet()
	say("waiting for what is not answered yet")
	f := m.judge()
	f.Writes, f.OverlappingWrites = fence()
	if f.OverlappingWrites != 0 {
		t.Errorf("%d writes of gateways that another one had taken the account from", f.OverlappingWrites)
	}
	return f
}

// unknown are the questions that the mesh tells of as unknown, and their ids.
func (m *chatMesh) unknown() map[string]string {
	var r struct {
		DeadLetters []struct {
			Class    string
			Agent    string
			Reason   string
			Envelope struct {
				MessageID string `json:"message_id"`
				Payload   json.RawMessage
			}
		} `json:"dead_letters"`
	}
	if err := m.nodes[0].api(http.MethodGet, "/v1/deadletters", "", &r); err != nil {
		return nil
	}
	all := map[string]string{}
	for _, d := range r.DeadLetters {
		var e struct{ Text string }
		_ = json.Unmarshal(d.Envelope.Payload, &e)
		if d.Class == "unknown" {
			all[e.Text] = d.Envelope.MessageID
		} else {
			m.t.Errorf("dead letter at %s of class %s (%s): %s", d.Agent, d.Class, e.Text, d.Reason)
		}
	}
	return all
}

// judge waits until everything is answered or told of, and counts.
func (m *chatMesh) judge() chatFigures {
	f := chatFigures{Kinds: map[string]failoverFigure{}, ByChannel: map[string]int{}}
	deadline := time.Now().Add(90 * time.Second)
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		unknown, open := m.unknown(), 0
		for _, p := range m.people {
			heard := map[string]bool{}
			for _, text := range p.heard() {
				heard[text] = true
			}
			for _, q := range p.questions() {
				if !heard[q] && unknown[q] == "" {
					open++
				}
			}
		}
		if open == 0 || time.Now().After(deadline) || m.t.Failed() {
			break
		}
		<-tick.C
	}
	unknown := m.unknown()
	for _, p := range m.people {
		asked, heard := p.questions(), p.heard()
		f.Messages += len(asked)
		f.ByChannel[p.name] = len(asked)
		times, place := map[string]int{}, map[string]int{}
		for i, text := range heard {
			if times[text]++; times[text] == 1 {
				place[text] = i
			}
		}
		last := -1
		for _, q := range asked {
			n := times[q]
			delete(times, q)
			switch {
			case n > 1:
				f.Doubled++
				m.t.Errorf("%s was answered %d times", q, n)
			case unknown[q] != "":
				f.Unknown++
				for text := range times {
					if strings.HasSuffix(text, "(Reference "+unknown[q]+")") {
						f.Told++
						delete(times, text)
					}
				}
			case n == 0:
				f.Lost++
				m.t.Errorf("%s was never answered (%s)", q, p.took[q])
			default:
				f.AnsweredOnce++
				if p.again != nil && p.again(q) {
					f.Redelivered++
					continue
				}
				if place[q] < last {
					f.OutOfOrder++
					m.t.Errorf("%s was answered too late (%s)", q, p.took[q])
				}
				last = max(last, place[q])
			}
		}
		for text := range times {
			f.OtherAnswers++
			m.t.Errorf("%s heard %q", p.name, text)
		}
	}
	for kind, took := range m.took {
		f.Failovers += len(took)
		f.Kinds[kind] = failoverFigure{N: len(took), P50: quantile(took, 0.5), P95: quantile(took, 0.95), Most: quantile(took, 1)}
	}
	f.Graceful, f.Crash, f.Node = f.Kinds[failGraceful].P95, f.Kinds[failCrash].P95, f.Kinds[failNode].P95
	m.mu.Lock()
	defer m.mu.Unlock()
	f.EffectWindow, f.EffectWindowMost = quantile(m.windows, 0.95), quantile(m.windows, 1)
	return f
}

// fenceLog is what Consul showed of the accounts: who took the lock at which index, and who wrote at which.
type fenceLog struct {
	mu    sync.Mutex
	locks map[string]map[uint64]string // inbox, the index at which the lock was taken, gateway
	wrote map[string]map[uint64]string // inbox, index of a write, gateway
}

// overlapping counts writes at an index at which another gateway than the writer was the last to have taken the lock. Consul's indices are
// the order in which the servers accepted things, so no clock takes part.
func (l *fenceLog) overlapping() (writes, over int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for inbox, wrote := range l.wrote {
		for at, by := range wrote {
			var last uint64
			for taken := range l.locks[inbox] {
				if taken <= at {
					last = max(last, taken)
				}
			}
			if last == 0 {
				continue // of before we looked
			}
			writes++
			if l.locks[inbox][last] != by {
				over++
			}
		}
	}
	return writes, over
}

// watchFence looks at Consul itself, from now until the returned function is called.
func (m *chatMesh) watchFence() (end func() (writes, over int)) {
	l := &fenceLog{locks: map[string]map[uint64]string{}, wrote: map[string]map[uint64]string{}}
	for _, inbox := range chatInboxes {
		l.locks[inbox], l.wrote[inbox] = map[uint64]string{}, map[uint64]string{}
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for prefix, see := range map[string]func(key string, p consulPair){
		"openclaw/owners/agents/": func(key string, p consulPair) {
			var claim struct{ Gateway string }
			if locks := l.locks[key]; locks != nil && p.Session != "" && json.Unmarshal(p.value(), &claim) == nil {
				// A claim is written again under the same lock (a new signature); the key is created anew with each session's lock.
				locks[p.CreateIndex] = claim.Gateway
			}
		},
		"openclaw/duties/": func(key string, p consulPair) {
			inbox, name, _ := strings.Cut(key, "/")
			if wrote := l.wrote[inbox]; wrote != nil && name == "status" {
				var rec struct{ JSON struct{ Gateway string } }
				if json.Unmarshal(p.value(), &rec) == nil && rec.JSON.Gateway != "" {
					wrote[p.ModifyIndex] = rec.JSON.Gateway
				}
			}
		},
	} {
		wg.Go(func() {
			var index uint64
			for at := 0; ctx.Err() == nil; at++ {
				for {
					pairs, next, err := consulWatch(ctx, m.cluster.Addr(at%3), prefix, index)
					if err != nil {
						break // its server may be the one that was killed
					}
					index = next
					l.mu.Lock()
					for _, p := range pairs {
						see(strings.TrimPrefix(p.Key, prefix), p)
					}
					l.mu.Unlock()
				}
			}
		})
	}
	return func() (int, int) {
		stop()
		wg.Wait()
		return l.overlapping()
	}
}

type consulPair struct {
	Key                      string
	Value                    string
	Session                  string
	CreateIndex, ModifyIndex uint64
}

func (p consulPair) value() []byte {
	b, err := base64.StdEncoding.DecodeString(p.Value)
	if err != nil {
		return nil
	}
	return b
}

// consulWatch is one blocking query.
func consulWatch(ctx context.Context, addr, prefix string, index uint64) ([]consulPair, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/v1/kv/%s?recurse&index=%d&wait=2s", addr, prefix, index), nil)
	if err != nil {
		return nil, 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	next, err := strconv.ParseUint(resp.Header.Get("X-Consul-Index"), 10, 64)
	if err != nil {
		return nil, 0, fmt.Errorf("no index: %w", err)
	}
	if resp.StatusCode == http.StatusNotFound {
		return nil, next, nil
	}
	var pairs []consulPair
	if err := json.NewDecoder(resp.Body).Decode(&pairs); err != nil {
		return nil, 0, err
	}
	return pairs, next, nil
}

// The judge of the fence finds a write of somebody who was deposed.
func TestFenceIsSeen(t *testing.T) {
	l := &fenceLog{locks: map[string]map[uint64]string{"a": {10: "one", 20: "two"}}, wrote: map[string]map[uint64]string{"a": {5: "zero", 12: "one", 19: "one", 21: "two"}}}
	if writes, over := l.overlapping(); writes != 3 || over != 0 {
		t.Errorf("%d writes, %d overlapping", writes, over)
	}
	l.wrote["a"][25] = "one"
	if writes, over := l.overlapping(); writes != 4 || over != 1 {
		t.Errorf("%d writes, %d overlapping", writes, over)
	}
}

// TestChannelFailovers: each way once, on all four channels together.
func TestChannelFailovers(t *testing.T) {
	f := driveChannels(t, builtBinary(t), map[string]int{failGraceful: 1, failCrash: 1, failStop: 1, failCut: 1}, 1, t.Logf)
	t.Logf("%+v", f)
	if f.Messages == 0 || f.Writes == 0 {
		t.Error("nothing happened")
	}
}
