"""Keys of Apache RocketMQ's configuration files that have no effect here, so that no official file is refused.

Three kinds: keys that only concern a JVM, keys of mechanisms that aerobee does not need or does not have, and
settings whose built-in value always applies. Each is accepted and mentioned once at the start. A key for which
the daemon has a row of its own is honoured, whatever these tables say.

Keys that must not be passed over in silence, because the operator would believe in a protection or a file
layout that is not there, are in `*_REFUSED`: only the harmless values are accepted.
"""

from __future__ import annotations

from typing import Final

from aerobee.options import Refusal


def _by_key(table: dict[str, str]) -> dict[str, str]:
    return {key: reason for reason, keys in table.items() for key in keys.split()}


BROKER: Final = _by_key(
    {
        "one event loop serves all requests, there are no thread pools and queues to size": """
        ackMessageThreadPoolNums ackThreadPoolQueueCapacity adminBrokerThreadPoolNums
        adminBrokerThreadPoolQueueCapacity appendAckAsync appendCkAsync asyncSendEnable
        batchDispatchRequestThreadPoolNums brokerFastFailureEnable clientAsyncSemaphoreValue
        clientCallbackExecutorThreads clientManagerThreadPoolQueueCapacity clientManageThreadPoolNums
        clientOnewaySemaphoreValue clientWorkerThreads compactionThreadNum consumerManagerThreadPoolQueueCapacity
        consumerManageThreadPoolNums disableCallbackExecutor disableNettyWorkerGroup dispatchCqCacheNum
        dispatchCqThreads dispatchFromSenderThread enableAcceleratedRecovery enableBuildConsumeQueueConcurrently
        enableFastChannelEventProcess enableScheduleAsyncDeliver endTransactionPoolQueueCapacity
        endTransactionThreadPoolNums heartbeatThreadPoolNums heartbeatThreadPoolQueueCapacity
        litePullMessageThreadPoolNums litePullThreadPoolQueueCapacity loadBalanceProcessorThreadPoolNums
        loadBalanceThreadPoolQueueCapacity maxAsyncPutMessageRequests osPageCacheBusyTimeOutMills
        processReplyMessageThreadPoolNums pullMessageThreadPoolNums pullThreadPoolQueueCapacity
        putMessageFutureThreadPoolNums putMessageTimeout putMsgIndexHightWater putThreadPoolQueueCapacity
        queryMessageThreadPoolNums queryThreadPoolQueueCapacity recoverConcurrently recoverThreadPoolNums
        replyThreadPoolQueueCapacity scheduleAsyncDeliverMaxPendingLimit scheduleAsyncDeliverMaxResendNum2Blocked
        sendMessageThreadPoolNums sendThreadPoolQueueCapacity serverAsyncSemaphoreValue serverCallbackExecutorThreads
        serverNettyWorkerGroupEnable serverOnewaySemaphoreValue serverSelectorThreads serverWorkerThreads
        timerEnableDisruptor timerGetMessageThreadNum timerPutMessageThreadNum timerReputServiceCorePoolSize
        timerReputServiceMaxPoolSize timerReputServiceQueueCapacity waitTimeMillsInAckQueue
        waitTimeMillsInAdminBrokerQueue waitTimeMillsInHeartbeatQueue waitTimeMillsInLitePullQueue
        waitTimeMillsInPullQueue waitTimeMillsInSendQueue waitTimeMillsInTransactionQueue
    """,
        "one writer owns the log, there are no locks between threads to choose": """
        debugLockEnable enableAsyncReput recheckReputOffsetFromCq spinLockCollisionRetreatOptimalDegree
        topicQueueLockNum useABSLock useReentrantLockWhenPutMessage
    """,
        "it tunes the JVM's buffers and memory maps": """
        accessMessageInMemoryHotRatio accessMessageInMemoryMaxRatio cleanSwapedMapInterval
        clientPooledByteBufAllocatorEnable clientSocketRcvBufSize clientSocketSndBufSize commitCommitLogLeastPages
        commitCommitLogThoroughInterval commitIntervalCommitLog commitLogForceSwapMapInterval commitLogSwapMapInterval
        commitLogSwapMapReserveFileNum dataReadAheadEnable destroyMapedFileIntervalForcibly diskFallRecorded
        fastFailIfNoBufferInStorePool flushCommitLogLeastPages flushConsumeQueueLeastPages
        flushLeastPagesWhenWarmMapedFile logicQueueForceSwapMapInterval logicQueueSwapMapInterval
        logicQueueSwapMapReserveFileNum mappedFileSwapEnable putConsumeQueueDataByFileChannel readUnCommitted
        redeleteHangedFileInterval sampleCountThreshold sampleSteps searchBcqByCacheEnable
        serverPooledByteBufAllocatorEnable serverSocketRcvBufSize serverSocketSndBufSize transferMsgByHeap
        transientStorePoolEnable transientStorePoolSize useEpollNativeSelector wakeCommitWhenPutMessage
        warmMapedFileEnable writeBufferHighWaterMark writeBufferLowWaterMark writeWithoutMmap
    """,
        "nothing here is kept in RocksDB": """
        bottomMostCompressionTypeForConsumeQueueStore cleanRocksDBDirtyCQIntervalMin combineAssignOffsetCQType
        combineCQEnableCheckSelf combineCQLoadingCQTypes combineCQMaxExtraSearchCommitLogFiles combineCQPreferCQType
        combineCQUseRocksdbForLmq configManagerVersion enableRocksDBLog indexRocksDBEnable
        iteratorWhenUseRocksdbConsumeQueue maxRocksDBIndexQueryDays memTableFlushIntervalMs
        persistConsumerOffsetIncrementally popConsumerFSServiceInit popConsumerKVServiceEnable
        popConsumerKVServiceInit popConsumerKVServiceLog realTimePersistRocksDBConfig rocksdbCompressionType
        rocksdbCQDoubleWriteEnable rocksdbFlushWalFrequency rocksdbWalFileRollingThreshold sharedByteBufferNum
        statRocksDBCQIntervalSec timerRocksDBEnable timerRocksDBPrecisionMs timerRocksDBRollIntervalHours
        timerRocksDBRollMaxTps timerRocksDBRollRangeHours timerRocksDBStopScan timerRocksDBTimeExpiredMaxTps
        transactionCheckRocksdbCoreThreads transactionCheckRocksdbMaxThreads transactionCheckRocksdbQueueCapacity
        transRocksDBEnable transWriteOriginTransHalfEnable useSeparateStorePathForRocksdbCQ
        useSingleRocksDBForAllConfigs
    """,
        "there is no tiered storage": """
        commitLogRollingInterval commitLogRollingMinimumSize objectStoreAccessKey objectStoreBucket
        objectStoreEndpoint objectStoreSecretKey readAheadCacheEnable readAheadCacheExpireDuration
        readAheadCacheSizeThresholdRate readAheadMessageCountThreshold readAheadMessageSizeThreshold
        recordGetMessageResult tieredBackendServiceProvider tieredMetadataServiceProvider tieredStorageLevel
        tieredStoreCommitLogMaxSize tieredStoreConsumeQueueMaxSize tieredStoreCrcCheckEnable
        tieredStoreDeleteFileEnable tieredStoreDeleteFileInterval tieredStoreFilePath tieredStoreFileReservedTime
        tieredStoreGroupCommit tieredStoreGroupCommitCount tieredStoreGroupCommitSize tieredStoreGroupCommitTimeout
        tieredStoreIndexFileMaxHashSlotNum tieredStoreIndexFileMaxIndexNum tieredStoreMaxGroupCommitCount
        tieredStoreMaxPendingLimit
    """,
        "there is no controller and no DLedger": """
        allAckInSyncStateSet asyncLearner brokerElectionPriority checkSyncStateSetPeriod controllerAddr
        controllerHeartBeatTimeoutMills dLegerGroup dLegerPeers dLegerSelfId enableAutoInSyncReplicas
        fetchControllerAddrByDnsLookup preferredLeaderId storePathBrokerIdentity storePathDLedgerCommitLog
        storePathEpochFile syncBrokerMetadataPeriod syncControllerMetadataPeriod syncFromLastFile
    """,
        "there is no cold-data flow control": """
        cgColdReadThreshold coldCtrStrategyEnable coldDataFlowControlEnable coldDataScanEnable globalColdReadThreshold
        timerColdDataCheckIntervalMs usePIDColdCtrStrategy
    """,
        "it belongs to the metrics exporters of Apache RocketMQ": """
        enableConnectionMetrics enableLagAndDlqMetrics enableMessageStoreMetrics enablePopMetrics
        enableRemotingMetrics enableRequestMetrics enableStatsMetrics enableTransactionMetrics
        liteLagCountMetricsEnable liteLagLatencyMetricsEnable metricGrpcExporterIntervalInMills
        metricGrpcExporterTimeOutInMills metricLoggingExporterIntervalInMills metricsExportBatchMaxDataPoints
        metricsExporterType metricsGrpcExporterHeader metricsGrpcExporterTarget metricsInDelta metricsLabel
        metricsOtelCardinalityLimit metricsPromExporterHost metricsPromExporterPort timerCheckMetricsWhen
        timerEnableCheckMetrics timerMetricSmallThreshold
    """,
        "it belongs to the log files and counters of Apache RocketMQ": """
        accountStatsEnable accountStatsPrintZeroValues autoDeleteUnusedStats commercialBaseCount commercialSizePerMsg
        enableDetailStat enableLitePopLog enableLmqStats enableLogConsumeQueueRepeatedlyBuildWhenRecover enablePopLog
        enableScheduleMessageStats estimateAccumulation isolateLogEnable liteLagLatencyCollectEnable
        liteLagLatencyTopK maxStatsIdleTimeInMinutes printChannelGroups printChannelGroupsMinNum
        timerProgressLogIntervalMs
    """,
        "there are no lite topics": """
        enableLiteEventMode liteEventCheckInterval liteEventFullDispatchDelayTime
        liteEventFullDispatchDelayTimeForWildcardGroup liteSubscriptionCheckInterval liteSubscriptionCheckTimeoutMills
        liteTtlCheckInterval maxClientEventCount maxLiteSubscriptionCount minLiteTTl
    """,
        "filters are evaluated from the message properties, without Bloom filters": """
        bitMapLengthConsumeQueueExt enableCalcFilterBitMap enableConsumeQueueExt expectConsumerNumUseFilter
        filterDataCleanTimeSpan mappedFileSizeConsumeQueueExt maxErrorRateOfBloomFilter
    """,
        "there is no access control": """
        aclCacheExpiredSecond aclCacheMaxNum aclCacheRefreshSecond authConfigPath authenticationMetadataProvider
        authenticationProvider authenticationStrategy authenticationWhitelist authorizationMetadataProvider
        authorizationProvider authorizationStrategy authorizationWhitelist clusterName configName
        initAuthenticationUser innerClientAuthenticationCredentials migrateAuthFromV1Enabled
        statefulAuthenticationCacheExpiredSecond statefulAuthenticationCacheMaxNum
        statefulAuthorizationCacheExpiredSecond statefulAuthorizationCacheMaxNum userCacheExpiredSecond
        userCacheMaxNum userCacheRefreshSecond
    """,
        "it tunes Netty": """
        bindAddress channelNotActiveInterval clientChannelMaxIdleTimeSeconds clientCloseSocketIfTimeout
        connectTimeoutMillis enableReconnectForGoAway enableShutdownGracefully isScanAvailableNameSrv listenPort
        maxReconnectIntervalTimeSeconds serverChannelMaxIdleTimeSeconds serverSocketBacklog shutdownWaitTimeSeconds
        socksProxyConfig
    """,
        "Apache RocketMQ 5 reads it no more either, though its manuals and old files have it": """
        abortFile checkTransactionMessageEnable mapedFileSizeCommitLog mapedFileSizeConsumeQueue storeCheckpoint
        storePathConsumeQueue storePathConsumerQueue storePathIndex
    """,
        "what ended a transaction is written at once, with the messages, and never waits": """
        transactionOpBatchInterval
    """,
        "there is no such setting, the built-in behaviour applies": """
        allowRecallWhenBrokerNotWriteable appendTopicForTimerDeleteKey autoCreateSubscriptionGroup
        autoCreateTopicEnable autoMessageVersionOnTopicLen broadcastOffsetExpireMaxSecond broadcastOffsetExpireSecond
        brokerClusterName brokerConfigPath brokerHeartbeatInterval brokerId brokerIP1 brokerIP2 brokerName
        brokerNotActiveTimeoutMillis brokerPermission brokerRole brokerTopicEnable channelExpiredTimeout
        checkCommitLogOffsetOnRecover checkCRCOnRecover cleanFileForciblyEnable cleanOfflineBrokerInterval
        cleanResourceInterval clearRetryTopicWhenDeleteTopic clusterTopicEnable commitLogRecoverMaxNum
        compatibleWithOldNameSrv
        compressedRegister configBlackList consumerFallbehindThreshold consumerOffsetUpdateVersionStep
        correctLogicMinOffsetForceInterval correctLogicMinOffsetSleepInterval defaultMessageRequestMode
        defaultPopShareQueueNum defaultQueryMaxNum defaultTopicQueueNums delayOffsetUpdateVersionStep
        deleteCommitLogFilesInterval deleteConsumeQueueFilesInterval deleteFileBatchMax deleteWhen
        disableConsumeIfConsumerReadSlowly disappearTimeAfterStart diskMaxUsedSpaceRatio diskSpaceCleanForciblyRatio
        diskSpaceWarningLevelRatio duplicationEnable enableBatchPush enableBroadcastOffsetStore
        enableCleanExpiredOffset enableCreateSysGroup enabledAppendPropCRC enableLmq enableLmqQuota
        enableMixedMessageType enableMultiDispatch enableNetWorkFlowControl enableNotifyAfterPopOrderLockRelease
        enableNotifyBeforePopCalculateLag enablePopBatchAck enablePopBufferMerge enablePopMessageThreshold
        enablePropertyFilter enableRegisterProducer enableRemoteEscape enableRetryTopicV2 enableRunningFlagsInFlush
        enableSingleTopicRegister enableSkipLongAwaitingAck enableSlaveActingMaster enableSplitMetadata
        enableSplitRegistration fetchNamesrvAddrByAddressServer fetchNameSrvAddrByDnsLookup fetchNamesrvAddrInterval
        fileReservedTime filterSupportRetry flushCommitLogThoroughInterval flushCommitLogTimed
        flushConsumeQueueThoroughInterval flushConsumerOffsetHistoryInterval flushConsumerOffsetInterval
        flushDelayOffsetInterval flushDiskType flushIntervalCommitLog flushIntervalConsumeQueue forceRegister
        forceVerifyPropCRC forwardTimeout haFlowControlEnable haHousekeepingInterval haListenPort haMasterAddress
        haMaxGapNotInSync haMaxTimeSlaveNotCatchup haSendHeartbeatInterval haTransferBatchSize highSpeedMode
        indexFileReadEnable indexFileWriteEnable initPopOffsetByCheckMsgInMem inSyncReplicas litePullMessageEnable
        loadBalancePollNameServerInterval lockInStrictMode logicalDiskSpaceCleanForciblyThreshold longPollingEnable
        mappedFileSizeCommitLog mappedFileSizeConsumeQueue mappedFileSizeTimerLog mapperFileSizeBatchConsumeQueue
        maxBatchDeleteFilesNum maxChecksumRange maxConsumeQueueScan maxFilterMessageSize maxHashSlotNum
        maxHaTransferByteInSecond maxIndexNum maxLmqConsumeQueueNum maxMessageFilterNumForNotification maxMessageSize
        maxMsgsNumBatch maxPopPollingSize maxRecoveryCommitlogFiles maxSlaveResendLength
        maxTopicLength maxTransferBytesOnMessageInDisk maxTransferBytesOnMessageInMemory
        maxTransferCountOnMessageInDisk maxTransferCountOnMessageInMemory messageDelayLevel messageIndexEnable
        messageIndexSafe minInSyncReplicas msgTraceTopicName namesrvAddr notifyConsumerIdsChangedEnable
        offsetCheckInSlave popCkMaxBufferSize popCkOffsetMaxQueueSize popCkStayBufferTime popCkStayBufferTimeOut
        popFromRetryProbability popFromRetryProbabilityForPriority popInflightMessageThreshold
        popLongPollingForceNotifyInterval popPollingMapExpireTimeSeconds popPollingMapSize popPollingSize
        popResponseReturnActualRetryTopic popReviveConcurrency popReviveMaxAttemptTimes popReviveMaxReturnSizePerRead
        popReviveSkipIfGroupAbsent priorityOrderAsc pullBatchMaxMessageCount
        realTimeNotifyConsumerChange recallMessageEnable regionId registerBrokerTimeoutMills registerNameServerPeriod
        rejectPullConsumerEnable rejectTransactionMessage replicasPerDiskPartition retrieveMessageFromPopRetryTopicV1
        reviveAckWaitMs reviveInterval reviveMaxSlow reviveQueueNum reviveScanTime rocketmqHome
        sendHeartbeatTimeoutMillis serverLoadBalancerEnable shortPollingTimeMills skipPreOnline
        skipWhenCKRePutReachMaxTimes slaveReadEnable slaveTimeout splitMetadataSize splitRegistrationSize
        startAcceptSendRequestTimeStamp storePathCommitLog storePathRootDir storeReplyMessageEnable
        subscriptionExpiredTimeout syncBrokerMemberGroupPeriod syncFlushTimeout syncMasterFlushOffsetWhenStartup
        timerCongestNumEachSlot timerEnableRetryUntilSuccess timerFlushIntervalMs timerInterceptDelayLevel
        timerMaxDelaySec timerPrecisionMs timerRecallToTimelineEnable timerRecallToTimeWheelEnable timerRollWindowSlot
        timerSkipUnknownError timerStopDequeue timerStopEnqueue timerWarmEnable timerWheelEnable
        timerWheelSnapshotFlush timerWheelSnapshotIntervalMs totalReplicas traceOn traceTopicEnable
        transactionCheckInterval transactionCheckMax transactionMetricFlushInterval transactionOpMsgMaxSize
        transactionTimeOut travelCqFileNumWhenGetMessage updateNameServerAddrPeriod
        useMessageFilterForNotification useSeparateRetryQueue useServerSideResetOffset useStaticSubscription
        validateSystemTopicWhenUpdateTopic wakeFlushWhenPutMessage
    """,
    }
)
"""Key of a broker file → why it has no effect."""

NAMESERVER: Final = _by_key(
    {
        "one event loop serves all requests, there are no thread pools, queues and buffers to size": """
        clientAsyncSemaphoreValue clientCallbackExecutorThreads clientOnewaySemaphoreValue
        clientPooledByteBufAllocatorEnable clientRequestThreadPoolNums clientRequestThreadPoolQueueCapacity
        clientSocketRcvBufSize clientSocketSndBufSize clientWorkerThreads defaultThreadPoolNums
        defaultThreadPoolQueueCapacity disableCallbackExecutor disableNettyWorkerGroup serverAsyncSemaphoreValue
        serverCallbackExecutorThreads serverNettyWorkerGroupEnable serverOnewaySemaphoreValue
        serverPooledByteBufAllocatorEnable serverSelectorThreads serverSocketRcvBufSize serverSocketSndBufSize
        serverWorkerThreads unRegisterBrokerQueueCapacity useEpollNativeSelector writeBufferHighWaterMark
        writeBufferLowWaterMark
    """,
        "it tunes Netty": """
        bindAddress channelNotActiveInterval clientChannelMaxIdleTimeSeconds clientCloseSocketIfTimeout
        connectTimeoutMillis enableReconnectForGoAway enableShutdownGracefully isScanAvailableNameSrv listenPort
        maxReconnectIntervalTimeSeconds serverChannelMaxIdleTimeSeconds serverSocketBacklog shutdownWaitTimeSeconds
        socksProxyConfig
    """,
        "there is no controller": """
        controllerDLegerGroup controllerDLegerPeers controllerDLegerSelfId controllerRequestThreadPoolQueueCapacity
        controllerStorePath controllerThreadPoolNums controllerType electMasterMaxRetryCount enableElectUncleanMaster
        isProcessReadEvent jraftConfig jRaftControllerRPCAddr jRaftElectionTimeoutMs jRaftGroupId jRaftInitConf
        jRaftScanWaitTimeoutMs jRaftServerId jRaftSnapshotIntervalSecs mappedFileSize
        metricGrpcExporterIntervalInMills metricGrpcExporterTimeOutInMills metricLoggingExporterIntervalInMills
        metricsExporterType metricsGrpcExporterHeader metricsGrpcExporterTarget metricsInDelta metricsLabel
        metricsPromExporterHost metricsPromExporterPort notifyBrokerRoleChanged scanInactiveMasterInterval
    """,
        "there is no such setting, the built-in behaviour applies": """
        clusterTest configBlackList configStorePath deleteTopicWithBrokerRegistration enableAllTopicList
        enableTopicList kvConfigPath needWaitForService notifyMinBrokerIdChanged orderMessageEnable productEnvName
        returnOrderTopicConfigToBroker rocketmqHome scanNotActiveBrokerInterval supportActingMaster
        waitSecondsForService
    """,
    }
)
"""Key of a name server file → why it has no effect."""

_OFF: Final = ("", "false")

BROKER_REFUSED: Final = {
    "aclEnable": Refusal(_OFF, "there is no access control"),
    "authenticationEnabled": Refusal(_OFF, "there is no access control"),
    "authorizationEnabled": Refusal(_OFF, "there is no access control"),
    "useTLS": Refusal(_OFF, "there is no TLS"),
    "enableControllerMode": Refusal(_OFF, "there is no controller"),
    "enableDLegerCommitLog": Refusal(_OFF, "there is no DLedger commit log"),
    "isBrokerContainer": Refusal(_OFF, "there is no broker container"),
    "isInBrokerContainer": Refusal(_OFF, "there is no broker container"),
    "messageStorePlugIn": Refusal(("",), "there are no store plug-ins"),
    "readOnlyCommitLogStorePaths": Refusal(("",), "the whole log is in one directory, storePathRootDir/commitlog"),
    "storeType": Refusal(("", "default"), "only the file store is served, not RocksDB"),
}
"""Key of a broker file → the values that are accepted and why others are not."""

NAMESERVER_REFUSED: Final = {
    "enableControllerInNamesrv": Refusal(_OFF, "there is no controller"),
    "useTLS": Refusal(_OFF, "there is no TLS"),
}
"""Key of a name server file → the values that are accepted and why others are not."""
