package gateway

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/bus/bustest"
	"github.com/gatemesh/gatemesh/envelope"
)

// METRICS.md and the registry say the same: names, types and labels.
func TestMetricsTable(t *testing.T) {
	n := startNode(t, parseNode(t, "lone", nil, "", echoAgent("bobby")), Deps{Store: newStore(t)})
	n.ask("bobby", "x")
	n.metrics.observe(bus.Event{Event: bus.EventDeadLetter, Class: envelope.ClassExpired}) // so that every label shows
	n.metrics.observe(bus.Event{Event: bus.EventRefused})
	n.metrics.channelUp.WithLabelValues("slack", "default")
	for _, v := range []*prometheus.CounterVec{n.metrics.channelErrors, n.metrics.channelEvents, n.metrics.channelForeign, n.metrics.channelPosts, n.metrics.channelUnknown} {
		v.WithLabelValues("slack", "default")
	}

	n.metrics.model(agent.ModelCall{Model: "p/m"})

	families, err := n.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "gatemesh_") {
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		have = append(have, fmt.Sprint(f.GetName(), " ", strings.ToLower(f.GetType().String()), " ", labels))
	}
	doc, err := os.ReadFile("METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(gatemesh_[a-z_]+)` \\| (\\w+) \\| ([^|]*)\\|").FindAllStringSubmatch(string(doc), -1) {
		var labels []string
		for _, l := range regexp.MustCompile("`([a-z]+)`").FindAllStringSubmatch(m[3], -1) {
			labels = append(labels, l[1])
		}
		slices.Sort(labels)
		want = append(want, fmt.Sprint(m[1], " ", m[2], " ", labels))
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Errorf("registered:\n%s\nMETRICS.md:\n%s", strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
	problems, err := testutil.GatherAndLint(n.metrics.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// One question is one of each event, and every metric of messages follows from events.
func TestMetricsCount(t *testing.T) {
	n := startNode(t, parseNode(t, "lone", nil, "", echoAgent("bobby")), Deps{Store: newStore(t)})
	n.ask("bobby", "x")
	text := string(n.do(http.MethodGet, "/metrics", "").body)
	for _, want := range []string{
		`gatemesh_messages_total{event="replied"} 1`,
		`gatemesh_messages_total{event="failed"} 0`,
		`gatemesh_reply_seconds_count 1`,
		`gatemesh_owned_agents 1`,
		`gatemesh_store_up 1`,
		`gatemesh_retries_total 0`,
		`gatemesh_http_requests_total{code="200",route="POST /v1/messages"} 1`,
		`gatemesh_build_info{gateway="lone",version="test"} 1`,
		`gatemesh_inbox_waiting{agent="bobby"} 0`,
	} {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("%s is missing", want)
		}
	}
	m := n.metrics
	m.observe(bus.Event{Event: "never-heard-of"})
	m.observe(bus.Event{Event: bus.EventDeadLetter, Class: envelope.ClassExhausted})
	m.observe(bus.Event{Event: bus.EventRetry})
	m.observe(bus.Event{Event: bus.EventDeposed, To: "bobby"})
	m.observe(bus.Event{Event: bus.EventDeposed, To: "bobby"})
	if got := testutil.ToFloat64(m.messages.WithLabelValues("other")); got != 1 {
		t.Errorf("unknown events: %v", got)
	}
	if got := testutil.ToFloat64(m.deadLetters.WithLabelValues("exhausted")); got != 1 {
		t.Errorf("dead letters: %v", got)
	}
	if got := testutil.ToFloat64(m.retries); got != 1 {
		t.Errorf("retries: %v", got)
	}
	if got := testutil.ToFloat64(m.owned); got != 0 {
		t.Errorf("owned: %v", got)
	}
}

// Scrapes need no token, so what they may ask of the store at a time is bounded.
func TestScrapesAreBounded(t *testing.T) {
	s := bustest.Faulty(newStore(t))
	n := startNode(t, parseNode(t, "lone", nil, "", echoAgent("bobby")), Deps{Store: s})
	var held atomic.Bool
	held.Store(true)
	asked, leave := make(chan struct{}, 64), make(chan struct{})
	s.Before(func(string, []bus.Op) error {
		if held.Load() {
			asked <- struct{}{}
			<-leave
		}
		return nil
	})
	codes := make(chan int, 2*maxScrapes)
	var wg sync.WaitGroup
	for range cap(codes) {
		wg.Go(func() { codes <- n.do(http.MethodGet, "/metrics", "").status })
	}
	refused := 0
	for refused < cap(codes)-maxScrapes {
		if code := await(t, codes, "a refusal"); code != http.StatusServiceUnavailable {
			t.Errorf("while the store is asked: %d", code)
		}
		refused++
	}
	await(t, asked, "a scrape to ask the store")
	held.Store(false)
	close(leave)
	wg.Wait()
	for range maxScrapes {
		if code := await(t, codes, "an answer"); code != http.StatusOK {
			t.Errorf("one of the first: %d", code)
		}
	}
}
