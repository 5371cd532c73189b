package main

import (
	"context"

	"github.com/apache/rocketmq-client-go/v2/admin"
)

// topicCreate makes a topic. Arguments: namesrv, topic, broker_address, queues.
func topicCreate(a Object) (Object, error) {
	tools, err := admin.NewAdmin(admin.WithResolver(a.nameServer()))
	if err != nil {
		return nil, err
	}
	defer tools.Close()
	return Object{}, tools.CreateTopic(context.Background(),
		admin.WithTopicCreate(a.text("topic", "")),
		admin.WithBrokerAddrCreate(a.text("broker_address", "")),
		admin.WithReadQueueNums(a.number("queues", 4)),
		admin.WithWriteQueueNums(a.number("queues", 4)),
	)
}

// topicDelete removes a topic from the broker and the name server. Arguments: namesrv, topic, broker_address.
func topicDelete(a Object) (Object, error) {
	tools, err := admin.NewAdmin(admin.WithResolver(a.nameServer()))
	if err != nil {
		return nil, err
	}
	defer tools.Close()
	return Object{}, tools.DeleteTopic(context.Background(),
		admin.WithTopicDelete(a.text("topic", "")),
		admin.WithBrokerAddrDelete(a.text("broker_address", "")),
	)
}

// topicList gives all topics that the name server knows, and the groups of broker_address.
func topicList(a Object) (Object, error) {
	tools, err := admin.NewAdmin(admin.WithResolver(a.nameServer()))
	if err != nil {
		return nil, err
	}
	defer tools.Close()
	topics, err := tools.FetchAllTopicList(context.Background())
	if err != nil {
		return nil, err
	}
	groups, err := tools.GetAllSubscriptionGroup(context.Background(), a.text("broker_address", ""), 5_000_000_000)
	if err != nil {
		return nil, err
	}
	var names []string
	for name := range groups.SubscriptionGroupTable {
		names = append(names, name)
	}
	return Object{"topics": topics.TopicList, "groups": names}, nil
}
