package gateway

import (
	"context"
	"net/http"
	"time"

	"github.com/gatemesh/gatemesh/bus"
)

const (
	// healthStorePath is what Consul's check of our service asks.
	healthStorePath = "/health/store"
	// reachEvery is how often it is asked whether the store's agent is there, and reachWithin how long an answer may take.
	reachEvery, reachWithin = time.Second, 2 * time.Second
	// cutOffAfter is how long the agent must have been silent before we say that we are cut off.
	cutOffAfter = 4 * time.Second
)

// watchReach finds out whether this gateway is cut off from the store's agent. The agent asks us every second (/health/store), and when we say so
// our session ends and others take over: within some 6 s, where the session's TTL alone takes 15 to 30. An agent whose servers have no leader
// still answers, so an election ends no session. Whoever is cut off may believe for some seconds more that he owns what others have taken: nothing
// comes of it, for each effect begins with a write under the lock, and the store refuses that.
func (g *Gateway) watchReach() {
	r, ok := storeAs[bus.Reachable](g.deps.Store)
	if !ok {
		return
	}
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-g.life.Done():
			return
		}
		asked := time.Now()
		ctx, cancel := context.WithTimeout(g.life, reachWithin)
		err := r.Reach(ctx)
		cancel()
		if err == nil {
			g.reached.Store(&asked)
		}
		t.Reset(reachEvery)
	}
}

func (g *Gateway) cutOff() bool {
	at := g.reached.Load()
	return at != nil && time.Since(*at) > cutOffAfter
}

// getStoreHealth is GET /health/store: 503 while this gateway cannot reach the store's agent.
func (g *Gateway) getStoreHealth(w http.ResponseWriter, _ *http.Request) error {
	p := ProbeResponse{Status: "ok", Gateway: g.name, Version: g.deps.Version}
	if !g.cutOff() {
		return writeJSON(w, http.StatusOK, p)
	}
	p.Status, p.Reason = "cut-off", "the store's agent does not answer this gateway"
	return writeJSON(w, http.StatusServiceUnavailable, p)
}
