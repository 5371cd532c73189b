// Drives the official Go client for the conformance tests: one process serves many commands, as ../java does for Java.
//
// Standard input has a JSON object a line: "id", "do" (the command's name) and its arguments. Standard output has one
// JSON object a line with the same "id" and either the results or "error". Commands run side by side.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"github.com/apache/rocketmq-client-go/v2/primitive"
)

// Object is a command's arguments, or what it found.
type Object map[string]any

var commands = map[string]func(Object) (Object, error){
	"produce":          produce,
	"transaction":      transaction,
	"transaction.stop": transactionStop,
	"request":          request,
	"consume.start":    consumeStart,
	"consume.state":    consumeState,
	"consume.stop":     consumeStop,
	"pull":             pull,
	"poll":             poll,
	"topic.create":     topicCreate,
	"topic.delete":     topicDelete,
	"topic.list":       topicList,
}

func main() {
	out := json.NewEncoder(os.Stdout)
	var lock sync.Mutex
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var arguments Object
		if err := json.Unmarshal(lines.Bytes(), &arguments); err != nil {
			panic(err)
		}
		go func() {
			reply := serve(arguments)
			reply["id"] = arguments["id"]
			lock.Lock()
			defer lock.Unlock()
			if err := out.Encode(reply); err != nil {
				panic(err)
			}
		}()
	}
}

func serve(arguments Object) Object {
	command, known := commands[arguments.text("do", "")]
	if !known {
		return Object{"error": fmt.Sprintf("no command %v", arguments["do"])}
	}
	reply, err := command(arguments)
	if err != nil {
		return Object{"error": err.Error()}
	}
	return reply
}

func (o Object) text(name, otherwise string) string {
	if value, ok := o[name].(string); ok {
		return value
	}
	return otherwise
}

func (o Object) number(name string, otherwise int) int {
	if value, ok := o[name].(float64); ok {
		return int(value)
	}
	return otherwise
}

func (o Object) flag(name string) bool {
	value, _ := o[name].(bool)
	return value
}

func (o Object) texts(name string) []string {
	var found []string
	values, _ := o[name].([]any)
	for _, value := range values {
		found = append(found, value.(string))
	}
	return found
}

func (o Object) nameServer() primitive.NsResolver {
	return primitive.NewPassthroughResolver([]string{o.text("namesrv", "")})
}

var instances atomic.Int64

// instance names a client of its own: clients of one name share connections, and who shuts down ends all of them.
func instance(kind string) string {
	return fmt.Sprintf("%s%d@%d", kind, instances.Add(1), os.Getpid())
}
