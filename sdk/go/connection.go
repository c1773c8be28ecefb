package antiphon

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

const (
	certificateLook  = 10 * time.Second
	certificateReady = 10 * time.Second
	learnLimit       = 5 * time.Second
)

// connection is the way to the orchestrators: generations of mutual-TLS connections, one current at a time. A certificate is
// checked when a connection is made, so a new one needs a new connection. When the files change, a new generation is made,
// proven ready, and only then takes over; calls on the old one end in peace, and the last of them closes it. Of several
// addresses gRPC tries each in turn; to those it was told at the start come the replicas that are there, which the one in use is
// asked for now and then.
type connection struct {
	seeds       []string
	credentials Credentials
	logger      *slog.Logger
	stop        context.CancelFunc
	watched     chan struct{} // closed when nobody looks at the files any more
	changing    sync.Mutex    // held by who makes a new generation, or changes the addresses
	addresses   []string      // the seeds, and what was learned

	mutex   sync.Mutex
	current *generation   // nil once closed
	retired []*generation // that calls still use
	pems    pems
}

// generation is one connection.
type generation struct {
	*grpc.ClientConn
	known *manual.Resolver
	users int
}

func open(addresses []string, files Credentials, logger *slog.Logger, look time.Duration) (*connection, error) {
	c := &connection{seeds: addresses, addresses: addresses, credentials: files, logger: logger, watched: make(chan struct{})}
	var err error
	if c.pems, err = files.read(); err != nil {
		return nil, err
	}
	if c.current, err = c.dial(c.pems); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	go func() {
		defer close(c.watched)
		for sleep(ctx, look) == nil {
			c.refresh(ctx)
			c.learn(ctx)
		}
	}()
	return c, nil
}

func (c *connection) dial(pems pems) (*generation, error) {
	config, err := pems.tls()
	if err != nil {
		return nil, err
	}
	known := manual.NewBuilderWithScheme("antiphon")
	known.InitialState(stateOf(c.addresses))
	made, err := grpc.NewClient("antiphon:///"+serverName,
		grpc.WithResolvers(known),
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageBytes)),
		// Which addresses a proxy is not for could not be said: it would be asked about our name for all of them.
		grpc.WithNoProxy(),
		// A dead peer is noticed within half a minute, on idle streams too; servers of ours permit it.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		// We retry with our own back-off; the connection's must not be slower.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second,
			},
			MinConnectTimeout: certificateReady,
		}),
	)
	if err != nil {
		return nil, setupError("%v cannot be dialled: %v", c.addresses, err)
	}
	return &generation{ClientConn: made, known: known}, nil
}

func stateOf(addresses []string) resolver.State {
	made := make([]resolver.Address, len(addresses))
	for number, address := range addresses {
		made[number] = resolver.Address{Addr: address}
	}
	return resolver.State{Addresses: made}
}

// use lends the current generation for one call or stream; the function returned gives it back.
func (c *connection) use() (*generation, func(), error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.current == nil {
		return nil, nil, setupError("the client is closed")
	}
	lent := c.current
	lent.users++
	return lent, func() {
		c.mutex.Lock()
		defer c.mutex.Unlock()
		lent.users--
		if place := slices.Index(c.retired, lent); place >= 0 && lent.users == 0 {
			c.retired = slices.Delete(c.retired, place, place+1)
			lent.Close()
		}
	}, nil
}

// newest is the generation that is lent now.
func (c *connection) newest() *generation {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return c.current
}

// refresh looks at the files now, and says whether there is a new generation. What cannot be used leaves the current one.
func (c *connection) refresh(ctx context.Context) bool {
	c.changing.Lock()
	defer c.changing.Unlock()
	found, err := c.credentials.read()
	if err != nil {
		c.logger.Warn("the certificate in use is kept", "error", err)
		return false
	}
	if found.equal(c.pems) {
		return false
	}
	made, err := c.dial(found)
	if err == nil && !made.ready(ctx) {
		// A key and a certificate that were not written at the same moment look like this, too.
		made.Close()
		err = setupError("no connection with the new one to %v", c.addresses)
	}
	if err != nil {
		c.logger.Warn("the certificate in use is kept", "error", err)
		return false
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.pems = found
	return c.takeOver(made)
}

// expired is when the certificate in use has ended, if it has: no server takes it then, or says why.
func (c *connection) expired() (time.Time, bool) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	ended := c.pems.notAfter()
	return ended, !ended.IsZero() && !ended.After(time.Now())
}

// turn goes on with the next address: who answers at that of `used` cannot serve now. Another call may have done it already.
func (c *connection) turn(used *generation) {
	c.changing.Lock()
	defer c.changing.Unlock()
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if len(c.addresses) < 2 || used != c.current {
		return
	}
	c.addresses = append(slices.Clone(c.addresses[1:]), c.addresses[0])
	made, err := c.dial(c.pems)
	if err != nil {
		c.logger.Warn("the address in use is kept", "error", err)
		return
	}
	c.takeOver(made)
}

// takeOver makes a generation the current one, unless the connection is closed. c.mutex is held.
func (c *connection) takeOver(made *generation) bool {
	if c.current == nil {
		made.Close()
		return false
	}
	if c.current.users == 0 {
		c.current.Close()
	} else {
		c.retired = append(c.retired, c.current)
	}
	c.current = made
	return true
}

// learn asks where else to turn, should the replica in use go away. One that cannot tell, or may not, changes nothing.
func (c *connection) learn(ctx context.Context) {
	asked := c.newest()
	if asked == nil || asked.GetState() != connectivity.Ready {
		return // it is for calls to connect
	}
	bounded, end := context.WithTimeout(ctx, learnLimit)
	defer end()
	found, err := antiphonv1.NewClusterServiceClient(asked).GetCluster(bounded, &antiphonv1.GetClusterRequest{})
	if err != nil {
		c.logger.Debug("the replicas are not known", "error", err)
		return
	}
	addresses := slices.Clone(c.seeds)
	for _, replica := range found.GetReplicas() {
		if !replica.GetLeaving() && !slices.Contains(addresses, replica.GetAddress()) {
			addresses = append(addresses, replica.GetAddress())
		}
	}
	c.changing.Lock()
	defer c.changing.Unlock()
	if slices.Equal(addresses, c.addresses) {
		return
	}
	c.addresses = addresses
	if current := c.newest(); current != nil {
		current.known.UpdateState(stateOf(addresses)) // a connection to an address that stays is kept
	}
}

func (c *connection) close() {
	c.stop()
	<-c.watched
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.current != nil {
		for _, one := range append(c.retired, c.current) {
			one.Close()
		}
		c.current, c.retired = nil, nil
	}
}

func (g *generation) ready(ctx context.Context) bool {
	ctx, end := context.WithTimeout(ctx, certificateReady)
	defer end()
	g.Connect()
	for state := g.GetState(); state != connectivity.Ready; state = g.GetState() {
		if !g.WaitForStateChange(ctx, state) {
			return false
		}
	}
	return true
}
