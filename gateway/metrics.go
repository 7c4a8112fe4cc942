package gateway

import (
	"cmp"
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/gatemesh/gatemesh/agent"
	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

const (
	// scrapeTimeout bounds what a scrape asks the store.
	scrapeTimeout = 2 * time.Second
	// maxScrapes bounds the scrapes at a time; further ones are answered 503.
	maxScrapes = 4
)

// eventNames are the values of the label event; what is not here counts as "other".
var eventNames = []string{
	bus.EventQueued, bus.EventDelivered, bus.EventAcked, bus.EventFailed, bus.EventRetry, bus.EventDeadLetter, bus.EventReceipt,
	bus.EventReplied, bus.EventDuplicate, bus.EventRefused, bus.EventGap, bus.EventOwned, bus.EventReleased, bus.EventDeposed,
	bus.EventStoreDown, bus.EventStoreUp, bus.EventEffect, EventChannel, EventForeign, EventUnanswered,
}

// latency are the buckets of message times in seconds: from a local store's fraction of a
// millisecond to answers that take minutes.
var latency = []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60, 300}

// metrics is the Prometheus side. What it knows of messages comes from events alone. The
// table is METRICS.md; a test holds the two together.
type metrics struct {
	g        *Gateway
	registry *prometheus.Registry

	messages                  *prometheus.CounterVec
	delivery, ack, reply      prometheus.Histogram
	deadLetters, refused      *prometheus.CounterVec
	retries                   prometheus.Counter
	effects                   *prometheus.CounterVec
	effectWindow              prometheus.Histogram
	owned, store              prometheus.Gauge
	requests                  *prometheus.CounterVec
	requestSeconds            *prometheus.HistogramVec
	denied                    *prometheus.CounterVec
	waiting, clients, dropped *prometheus.Desc
	channelUp                 *prometheus.GaugeVec
	channelEvents, channelPosts, channelErrors, channelForeign,
	channelUnknown *prometheus.CounterVec
	modelCalls, modelTokens, modelCost *prometheus.CounterVec
	modelSeconds                       *prometheus.HistogramVec
	known                              map[string]bool

	mu   sync.Mutex
	own  map[string]bool
	isUp bool
}

func newMetrics(g *Gateway, version string) *metrics {
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: latency})
	}
	m := &metrics{
		g: g, registry: prometheus.NewRegistry(), own: map[string]bool{}, known: map[string]bool{},
		messages:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gatemesh_messages_total", Help: "Events by kind, as this gateway made them."}, []string{"event"}),
		delivery:     histogram("gatemesh_delivery_seconds", "From making a message to handing it to the agent, seen by the agent's gateway."),
		ack:          histogram("gatemesh_ack_seconds", "From making a message to its recorded end, seen by the agent's gateway."),
		reply:        histogram("gatemesh_reply_seconds", "From making a question to its answer, seen by the asking gateway."),
		deadLetters:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gatemesh_dead_letters_total", Help: "Messages given up, by class."}, []string{"class"}),
		refused:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gatemesh_refused_total", Help: "Things in the store that were not believed, by reason."}, []string{"reason"}),
		effects:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gatemesh_effects_total", Help: "Steps of effects outside of the mesh, by what is known of them."}, []string{"state"}),
		effectWindow: histogram("gatemesh_effect_window_seconds", "From the last confirmation of the ownership to when it was known what came of an effect."),
		retries:      prometheus.NewCounter(prometheus.CounterOpts{Name: "gatemesh_retries_total", Help: "Attempts that will be repeated."}),
		owned:        prometheus.NewGauge(prometheus.GaugeOpts{Name: "gatemesh_owned_agents", Help: "Agents whose inboxes this gateway drains."}),
		store:        prometheus.NewGauge(prometheus.GaugeOpts{Name: "gatemesh_store_up", Help: "1 while the store answers, else 0."}),
		requests:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gatemesh_http_requests_total", Help: "HTTP requests by route and status."}, []string{"route", "code"}),
		requestSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "gatemesh_http_request_seconds",
			Help: "Time to answer HTTP requests by route; those that wait on purpose included.", Buckets: latency}, []string{"route"}),
		denied:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gatemesh_http_denied_total", Help: "HTTP requests that were refused before their route saw them, by reason."}, []string{"reason"}),
		waiting: prometheus.NewDesc("gatemesh_inbox_waiting", "Messages in the lanes of an agent's inbox that nobody has taken; absent while the store does not answer.", []string{"agent"}, nil),
		clients: prometheus.NewDesc("gatemesh_stream_clients", "Clients of the event stream.", nil, nil),
		dropped: prometheus.NewDesc("gatemesh_stream_dropped_total", "Clients of the event stream that were cut off because they were too slow.", nil, nil),
	}
	channel := []string{"channel", "account"}
	counter := func(name, help string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, channel)
		m.registry.MustRegister(v)
		return v
	}
	m.channelUp = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "gatemesh_channel_up", Help: "1 while this gateway holds the account's connection, else 0."}, channel)
	m.registry.MustRegister(m.channelUp)
	m.channelEvents = counter("gatemesh_channel_events_total", "Events of the vendor that were taken in.")
	m.channelPosts = counter("gatemesh_channel_posts_total", "Posts that the vendor has, as it said.")
	m.channelErrors = counter("gatemesh_channel_errors_total", "Failures of connections and posts.")
	m.channelForeign = counter("gatemesh_channel_foreign_total", "Signs of somebody else who uses the account's credentials.")
	m.channelUnknown = counter("gatemesh_channel_unknown_total", "Posts of which nobody can find out whether they were made.")
	m.modelCalls = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gatemesh_model_calls_total", Help: "Calls of models by what came of them: ok, or the fault."}, []string{"model", "result"})
	m.modelTokens = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gatemesh_model_tokens_total", Help: "Tokens that models read (in) and wrote (out), as vendors count them."}, []string{"model", "direction"})
	m.modelCost = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gatemesh_model_cost_usd_total", Help: "US dollars that models cost, by the prices of the configuration."}, []string{"model"})
	m.modelSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "gatemesh_model_seconds", Help: "Time of calls of models.", Buckets: prometheus.ExponentialBuckets(0.1, 2, 12)}, []string{"model"})
	m.registry.MustRegister(m.modelCalls, m.modelTokens, m.modelCost, m.modelSeconds)
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "gatemesh_build_info", Help: "Always 1; the labels say what runs.",
		ConstLabels: prometheus.Labels{"version": version, "gateway": g.name}})
	build.Set(1)
	for _, e := range eventNames {
		m.known[e] = true
		m.messages.WithLabelValues(e)
	}
	for _, s := range envelope.EffectStates {
		m.effects.WithLabelValues(string(s))
	}
	for _, r := range deniedReasons {
		m.denied.WithLabelValues(r)
	}
	m.registry.MustRegister(m.denied, m.messages, m.delivery, m.ack, m.reply, m.deadLetters, m.refused, m.retries, m.effects, m.effectWindow, m.owned, m.store, m.requests,
		m.requestSeconds, build, scraped{m}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// model counts a call of a model.
func (m *metrics) model(c agent.ModelCall) {
	m.modelCalls.WithLabelValues(c.Model, cmp.Or(c.Fault, "ok")).Inc()
	m.modelTokens.WithLabelValues(c.Model, "in").Add(float64(c.In))
	m.modelTokens.WithLabelValues(c.Model, "out").Add(float64(c.Out))
	m.modelCost.WithLabelValues(c.Model).Add(c.USD)
	m.modelSeconds.WithLabelValues(c.Model).Observe(c.Took.Seconds())
}

// observe counts an event.
func (m *metrics) observe(ev bus.Event) {
	label := ev.Event
	if !m.known[label] {
		label = "other"
	}
	m.messages.WithLabelValues(label).Inc()
	seconds := max(0, ev.Millis/1000) // the sender's clock may be ahead of ours
	switch ev.Event {
	case bus.EventDelivered:
		if ev.Attempt <= 1 {
			m.delivery.Observe(seconds)
		}
	case bus.EventAcked:
		m.ack.Observe(seconds)
	case bus.EventReplied:
		m.reply.Observe(seconds)
	case bus.EventDeadLetter:
		m.deadLetters.WithLabelValues(string(ev.Class)).Inc()
	case bus.EventRefused:
		m.refused.WithLabelValues(cmp.Or(ev.Refusal, string(trust.Malformed))).Inc()
	case bus.EventRetry:
		m.retries.Inc()
	case bus.EventEffect:
		m.effects.WithLabelValues(string(ev.EffectState)).Inc()
		if ev.WindowMillis > 0 {
			m.effectWindow.Observe(ev.WindowMillis / 1000)
		}
	case bus.EventOwned, bus.EventReleased, bus.EventDeposed:
		m.ownership(ev.To, ev.Event == bus.EventOwned)
	case bus.EventStoreUp, bus.EventStoreDown:
		m.storeUp(ev.Event == bus.EventStoreUp)
	}
}

func (m *metrics) ownership(agent string, owned bool) {
	if agent == m.g.name {
		return // the gateway's own desk is no agent
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if owned {
		m.own[agent] = true
	} else {
		delete(m.own, agent)
	}
	m.owned.Set(float64(len(m.own)))
}

func (m *metrics) storeUp(up bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.isUp = up
	if up {
		m.store.Set(1)
	} else {
		m.store.Set(0)
	}
}

func (m *metrics) storeIsUp() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.isUp
}

// request counts an HTTP request. route is a pattern, never a path.
func (m *metrics) request(route string, code int, took time.Duration) {
	m.requests.WithLabelValues(route, strconv.Itoa(code)).Inc()
	m.requestSeconds.WithLabelValues(route).Observe(took.Seconds())
}

func (m *metrics) handler() http.Handler {
	// Anybody may ask, and each answer reads from the store.
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes})
}

// scraped is what is looked up when somebody asks.
type scraped struct{ *metrics }

// Describe implements prometheus.Collector.
func (s scraped) Describe(ch chan<- *prometheus.Desc) {
	ch <- s.waiting
	ch <- s.clients
	ch <- s.dropped
}

// Collect implements prometheus.Collector.
func (s scraped) Collect(ch chan<- prometheus.Metric) {
	clients, dropped := s.g.hub.stats()
	ch <- prometheus.MustNewConstMetric(s.clients, prometheus.GaugeValue, float64(clients))
	ch <- prometheus.MustNewConstMetric(s.dropped, prometheus.CounterValue, float64(dropped))
	b := s.g.bus.Load()
	if b == nil {
		return
	}
	ctx, cancel := context.WithTimeout(s.g.life, scrapeTimeout)
	defer cancel()
	inboxes, err := b.Inboxes(ctx, "")
	if err != nil {
		s.g.log.Debug("scrape inboxes", "error", err)
		return
	}
	for _, i := range inboxes {
		ch <- prometheus.MustNewConstMetric(s.waiting, prometheus.GaugeValue, float64(i.Waiting), i.Agent)
	}
}
