/*
 * rte_flow (DPDK programmer's guide, chapter "Generic Flow API"), told in values that look the same in every release: headers as they are on the wire, and a
 * few words beside them. Included by shim.h.
 */
#ifndef RINGSPAN_DPDK_FLOW_H
#define RINGSPAN_DPDK_FLOW_H

#include <rte_flow.h>

enum shim_flow_limits {
	SHIM_FLOW_HEADER = 40,
	SHIM_FLOW_ITEMS = 16,
	SHIM_FLOW_STEPS = 72,
	SHIM_FLOW_MESSAGE = 256,
};

enum shim_item {
	SHIM_ITEM_REPRESENTED_PORT,
	SHIM_ITEM_ETH,
	SHIM_ITEM_VLAN,
	SHIM_ITEM_IPV4,
	SHIM_ITEM_IPV6,
	SHIM_ITEM_TCP,
	SHIM_ITEM_UDP,
	SHIM_ITEM_SCTP,
	SHIM_ITEM_ICMP,
	SHIM_ITEM_ICMP6,
	SHIM_ITEM_ARP,
	SHIM_ITEM_VXLAN,
	SHIM_ITEM_GENEVE,
};

struct shim_flow_item {
	uint32_t kind;
	/* Of SHIM_ITEM_REPRESENTED_PORT. */
	uint16_t port;
	/* Whether `last` counts. */
	uint8_t range;
	/* The bit beside the header (has_vlan, has_more_vlan, has_frag_ext): 0 or 1, other values when it does not count. */
	uint8_t next;
	uint8_t spec[SHIM_FLOW_HEADER];
	uint8_t last[SHIM_FLOW_HEADER];
	uint8_t mask[SHIM_FLOW_HEADER];
};

enum shim_step {
	SHIM_STEP_COUNT,
	SHIM_STEP_AGE,
	SHIM_STEP_COPY,
	SHIM_STEP_PORT,
	SHIM_STEP_DROP,
	SHIM_STEP_JUMP,
	SHIM_STEP_PUSH_VLAN,
	SHIM_STEP_VLAN_VID,
	SHIM_STEP_VLAN_PCP,
	SHIM_STEP_POP_VLAN,
	SHIM_STEP_MODIFY,
	SHIM_STEP_DEC_TTL,
	SHIM_STEP_VXLAN_DECAP,
	SHIM_STEP_RAW_DECAP,
	SHIM_STEP_RAW_ENCAP,
};

struct shim_flow_step {
	uint32_t kind;
	/* A port, a VLAN's type, id or priority, a group, seconds, or enum rte_flow_field_id. */
	uint32_t number;
	/* Bits that SHIM_STEP_MODIFY sets. */
	uint32_t width;
	uint8_t value[16];
	/* Headers of SHIM_STEP_RAW_DECAP and SHIM_STEP_RAW_ENCAP, which stay until the call is over. */
	const uint8_t *data;
	size_t size;
};

struct shim_flow_rule {
	uint32_t group;
	uint32_t priority;
	/* 1: between ports; 0: of what comes in at the port. */
	uint32_t transfer;
	uint32_t item_count;
	const struct shim_flow_item *items;
	uint32_t step_count;
	const struct shim_flow_step *steps;
};

/*
 * rte_flow_create(), or rte_flow_validate() without `flow`. Returns 0 or a negative errno, with what the driver says in `message`, which has room for
 * SHIM_FLOW_MESSAGE bytes.
 */
int shim_flow(uint16_t port, const struct shim_flow_rule *rule, struct rte_flow **flow, char *message);
/* rte_flow_destroy(). */
int shim_flow_destroy(uint16_t port, struct rte_flow *flow, char *message);

struct shim_flow_counters {
	uint64_t packets;
	uint64_t bytes;
	/* UINT32_MAX when the driver does not say. */
	uint32_t idle_seconds;
};

/* rte_flow_query() of its counter and, with `ages`, of its age. */
int shim_flow_query(uint16_t port, struct rte_flow *flow, int ages, struct shim_flow_counters *counters, char *message);
/* rte_flow_pick_transfer_proxy(). */
int shim_flow_proxy(uint16_t port, uint16_t *proxy);
/* rte_flow_isolate(): nothing comes in at the port but what flows send there. */
int shim_flow_isolate(uint16_t port);

#endif
