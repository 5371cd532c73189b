package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	rocketmq "github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
)

var statuses = map[primitive.SendStatus]string{
	primitive.SendOK:                "SEND_OK",
	primitive.SendFlushDiskTimeout:  "FLUSH_DISK_TIMEOUT",
	primitive.SendFlushSlaveTimeout: "FLUSH_SLAVE_TIMEOUT",
	primitive.SendSlaveNotAvailable: "SLAVE_NOT_AVAILABLE",
	primitive.SendUnknownError:      "UNKNOWN",
}

func options(a Object) []producer.Option {
	return []producer.Option{
		producer.WithNsResolver(a.nameServer()),
		producer.WithGroupName(a.text("group", "producers")),
		producer.WithInstanceName(instance("p")),
		producer.WithRetry(a.number("retries", 2)),
		producer.WithVIPChannel(a.flag("vip")),
	}
}

// message has the body "number:filler" and the property "seq".
func message(a Object, number int) *primitive.Message {
	body := fmt.Sprintf("%d:", number)
	if filler := a.number("size", 16) - len(body); filler > 0 {
		body += strings.Repeat("x", filler)
	}
	m := primitive.NewMessage(a.text("topic", ""), []byte(body))
	m.WithProperty("seq", fmt.Sprint(number))
	if tags := a.texts("tags"); len(tags) > 0 {
		m.WithTag(tags[number%len(tags)])
	}
	if prefix := a.text("keys", ""); prefix != "" {
		m.WithKeys([]string{fmt.Sprintf("%s%d", prefix, number)})
	}
	if level := a.number("level", 0); level > 0 {
		m.WithDelayTimeLevel(level)
	}
	properties, _ := a["properties"].(map[string]any)
	for name, value := range properties {
		m.WithProperty(name, fmt.Sprint(value))
	}
	return m
}

type tally struct {
	sync.Mutex
	sent     int
	statuses map[string]int
	queues   map[string]int
	results  []Object
	errors   map[string]int
}

func newTally() *tally {
	return &tally{statuses: map[string]int{}, queues: map[string]int{}, results: []Object{}, errors: map[string]int{}}
}

func (t *tally) add(r *primitive.SendResult, err error) {
	t.Lock()
	defer t.Unlock()
	if err != nil {
		t.errors[err.Error()]++
		return
	}
	t.sent++
	t.statuses[statuses[r.Status]]++
	t.queues[fmt.Sprint(r.MessageQueue.QueueId)]++
	t.results = append(t.results, Object{
		"status": statuses[r.Status], "msg_id": r.MsgID, "offset_msg_id": r.OffsetMsgID,
		"queue": r.MessageQueue.QueueId, "broker": r.MessageQueue.BrokerName, "queue_offset": r.QueueOffset,
		"transaction_id": r.TransactionID, "region": r.RegionID, "trace": r.TraceOn,
	})
}

func (t *tally) reply() Object {
	t.Lock()
	defer t.Unlock()
	return Object{"sent": t.sent, "statuses": t.statuses, "queues": t.queues, "results": t.results, "errors": t.errors}
}

// produce sends numbered messages. Arguments: namesrv, topic, count; optional group, from (first number), size (body
// bytes), mode (sync, async, oneway, batch, sharded, queue), batch, shards, broker and queue, tags (list, used in turn),
// keys (prefix), properties, level (delay level), vip, retries.
func produce(a Object) (Object, error) {
	selector := producer.NewRoundRobinQueueSelector()
	mode := a.text("mode", "sync")
	switch mode {
	case "sharded":
		selector = producer.NewHashQueueSelector()
	case "queue":
		selector = producer.NewManualQueueSelector()
	}
	p, err := rocketmq.NewProducer(append(options(a), producer.WithQueueSelector(selector))...)
	if err != nil {
		return nil, err
	}
	if err := p.Start(); err != nil {
		return nil, err
	}
	defer p.Shutdown()
	ctx := context.Background()
	found := newTally()
	from, count := a.number("from", 0), a.number("count", 1)
	switch mode {
	case "sync", "sharded", "queue":
		for i := from; i < from+count; i++ {
			m := message(a, i)
			if mode == "sharded" {
				shard := fmt.Sprint(i % a.number("shards", 4))
				m.WithShardingKey("shard " + shard)
				m.WithProperty("shard", shard)
			}
			if mode == "queue" {
				m.Queue = &primitive.MessageQueue{
					Topic: m.Topic, BrokerName: a.text("broker", ""), QueueId: a.number("queue", 0),
				}
			}
			found.add(p.SendSync(ctx, m))
		}
	case "async":
		var waiting sync.WaitGroup
		for i := from; i < from+count; i++ {
			waiting.Add(1)
			err := p.SendAsync(ctx, func(_ context.Context, r *primitive.SendResult, err error) {
				found.add(r, err)
				waiting.Done()
			}, message(a, i))
			if err != nil {
				found.add(nil, err)
				waiting.Done()
			}
		}
		waiting.Wait()
	case "oneway":
		for i := from; i < from+count-1; i++ {
			if err := p.SendOneWay(ctx, message(a, i)); err != nil {
				found.add(nil, err)
			}
		}
		// The answer to the last one says that those in front of it have arrived.
		found.add(p.SendSync(ctx, message(a, from+count-1)))
	case "batch":
		size := a.number("batch", 10)
		for i := from; i < from+count; i += size {
			var batch []*primitive.Message
			for j := i; j < min(i+size, from+count); j++ {
				batch = append(batch, message(a, j))
			}
			found.add(p.SendSync(ctx, batch...))
		}
	default:
		return nil, fmt.Errorf("no mode %s", mode)
	}
	return found.reply(), nil
}

var states = map[string]primitive.LocalTransactionState{
	"commit":   primitive.CommitMessageState,
	"rollback": primitive.RollbackMessageState,
	"unknown":  primitive.UnknowState,
}

type listener struct {
	outcome, check primitive.LocalTransactionState
	checks         atomic.Int64
}

func (l *listener) ExecuteLocalTransaction(*primitive.Message) primitive.LocalTransactionState {
	return l.outcome
}

func (l *listener) CheckLocalTransaction(*primitive.MessageExt) primitive.LocalTransactionState {
	l.checks.Add(1)
	return l.check
}

type transactional struct {
	*listener
	producer rocketmq.TransactionProducer
}

var transactions sync.Map

// transaction sends halves; its producer answers checks until transaction.stop. Extra arguments: name, outcome (commit,
// rollback, unknown), check (what a check answers).
func transaction(a Object) (Object, error) {
	l := &listener{outcome: states[a.text("outcome", "unknown")], check: states[a.text("check", "unknown")]}
	p, err := rocketmq.NewTransactionProducer(l, options(a)...)
	if err != nil {
		return nil, err
	}
	if err := p.Start(); err != nil {
		return nil, err
	}
	transactions.Store(a.text("name", ""), transactional{l, p})
	found := newTally()
	for i := a.number("from", 0); i < a.number("from", 0)+a.number("count", 1); i++ {
		r, err := p.SendMessageInTransaction(context.Background(), message(a, i))
		if err != nil {
			found.add(nil, err)
			continue
		}
		found.add(r.SendResult, nil)
	}
	return found.reply(), nil
}

// transactionStop ends the producer and gives the number of checks it answered.
func transactionStop(a Object) (Object, error) {
	found, known := transactions.LoadAndDelete(a.text("name", ""))
	if !known {
		return nil, fmt.Errorf("no transactions %s", a.text("name", ""))
	}
	t := found.(transactional)
	return Object{"checks": t.checks.Load()}, t.producer.Shutdown()
}

// request sends requests until one is answered, or timeout_ms is over: the client tells the broker of itself a second
// after its start, and a reply before that finds nobody.
func request(a Object) (Object, error) {
	p, err := rocketmq.NewProducer(options(a)...)
	if err != nil {
		return nil, err
	}
	if err := p.Start(); err != nil {
		return nil, err
	}
	defer p.Shutdown()
	deadline := time.Now().Add(time.Duration(a.number("timeout_ms", 20_000)) * time.Millisecond)
	for {
		reply, err := p.Request(context.Background(), time.Second, message(a, a.number("from", 0)))
		if err == nil {
			return Object{"body": string(reply.Body), "properties": reply.GetProperties()}, nil
		}
		if time.Now().After(deadline) {
			return nil, err
		}
	}
}
