/* See flow.h. */

#include <errno.h>
#include <string.h>

#include "shim.h"

/* Any item's structure: each begins with its header as it is on the wire. */
union item {
	struct rte_flow_item_ethdev port;
	struct rte_flow_item_eth eth;
	struct rte_flow_item_vlan vlan;
	struct rte_flow_item_ipv4 ipv4;
	struct rte_flow_item_ipv6 ipv6;
	struct rte_flow_item_arp_eth_ipv4 arp;
	uint8_t bytes[SHIM_FLOW_HEADER];
};

static const struct {
	enum rte_flow_item_type type;
	uint8_t size;
} item_kinds[] = {
	[SHIM_ITEM_REPRESENTED_PORT] = { RTE_FLOW_ITEM_TYPE_REPRESENTED_PORT, 0 },
	[SHIM_ITEM_ETH] = { RTE_FLOW_ITEM_TYPE_ETH, 14 },
	[SHIM_ITEM_VLAN] = { RTE_FLOW_ITEM_TYPE_VLAN, 4 },
	[SHIM_ITEM_IPV4] = { RTE_FLOW_ITEM_TYPE_IPV4, 20 },
	[SHIM_ITEM_IPV6] = { RTE_FLOW_ITEM_TYPE_IPV6, 40 },
	[SHIM_ITEM_TCP] = { RTE_FLOW_ITEM_TYPE_TCP, 20 },
	[SHIM_ITEM_UDP] = { RTE_FLOW_ITEM_TYPE_UDP, 8 },
	[SHIM_ITEM_SCTP] = { RTE_FLOW_ITEM_TYPE_SCTP, 12 },
	[SHIM_ITEM_ICMP] = { RTE_FLOW_ITEM_TYPE_ICMP, 8 },
	[SHIM_ITEM_ICMP6] = { RTE_FLOW_ITEM_TYPE_ICMP6, 4 },
	[SHIM_ITEM_ARP] = { RTE_FLOW_ITEM_TYPE_ARP_ETH_IPV4, 28 },
	[SHIM_ITEM_VXLAN] = { RTE_FLOW_ITEM_TYPE_VXLAN, 8 },
	[SHIM_ITEM_GENEVE] = { RTE_FLOW_ITEM_TYPE_GENEVE, 8 },
};

static void fill(union item *item, uint32_t kind, const uint8_t *header, uint8_t next)
{
	memset(item, 0, sizeof(*item));
	memcpy(item->bytes, header, item_kinds[kind].size);
	if (kind == SHIM_ITEM_ETH)
		item->eth.has_vlan = next;
	else if (kind == SHIM_ITEM_VLAN)
		item->vlan.has_more_vlan = next;
	else if (kind == SHIM_ITEM_IPV6)
		item->ipv6.has_frag_ext = next;
}

/* Any action's structure. */
union action {
	struct rte_flow_action_ethdev port;
	struct rte_flow_action_age age;
	struct rte_flow_action_jump jump;
	struct rte_flow_action_sample sample;
	struct rte_flow_action_of_push_vlan push_vlan;
	struct rte_flow_action_of_set_vlan_vid vlan_vid;
	struct rte_flow_action_of_set_vlan_pcp vlan_pcp;
	struct rte_flow_action_modify_field modify;
	struct rte_flow_action_raw_decap raw_decap;
	struct rte_flow_action_raw_encap raw_encap;
};

/* A copy's own list of actions. */
struct copy {
	struct rte_flow_action_ethdev port;
	struct rte_flow_action actions[2];
};

static int act(const struct shim_flow_step *step, struct rte_flow_action *action, union action *conf, struct copy *copy)
{
	memset(conf, 0, sizeof(*conf));
	action->conf = conf;
	switch (step->kind) {
	case SHIM_STEP_COUNT:
		action->type = RTE_FLOW_ACTION_TYPE_COUNT;
		action->conf = NULL;
		return 0;
	case SHIM_STEP_AGE:
		action->type = RTE_FLOW_ACTION_TYPE_AGE;
		conf->age.timeout = step->number;
		return 0;
	case SHIM_STEP_COPY:
		action->type = RTE_FLOW_ACTION_TYPE_SAMPLE;
		memset(copy, 0, sizeof(*copy));
		copy->port.port_id = step->number;
		copy->actions[0].type = RTE_FLOW_ACTION_TYPE_REPRESENTED_PORT;
		copy->actions[0].conf = &copy->port;
		copy->actions[1].type = RTE_FLOW_ACTION_TYPE_END;
		conf->sample.ratio = 1;
		conf->sample.actions = copy->actions;
		return 0;
	case SHIM_STEP_PORT:
		action->type = RTE_FLOW_ACTION_TYPE_REPRESENTED_PORT;
		conf->port.port_id = step->number;
		return 0;
	case SHIM_STEP_DROP:
		action->type = RTE_FLOW_ACTION_TYPE_DROP;
		action->conf = NULL;
		return 0;
	case SHIM_STEP_JUMP:
		action->type = RTE_FLOW_ACTION_TYPE_JUMP;
		conf->jump.group = step->number;
		return 0;
	case SHIM_STEP_PUSH_VLAN:
		action->type = RTE_FLOW_ACTION_TYPE_OF_PUSH_VLAN;
		conf->push_vlan.ethertype = rte_cpu_to_be_16(step->number);
		return 0;
	case SHIM_STEP_VLAN_VID:
		action->type = RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_VID;
		conf->vlan_vid.vlan_vid = rte_cpu_to_be_16(step->number);
		return 0;
	case SHIM_STEP_VLAN_PCP:
		action->type = RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_PCP;
		conf->vlan_pcp.vlan_pcp = step->number;
		return 0;
	case SHIM_STEP_POP_VLAN:
		action->type = RTE_FLOW_ACTION_TYPE_OF_POP_VLAN;
		action->conf = NULL;
		return 0;
	case SHIM_STEP_MODIFY:
		action->type = RTE_FLOW_ACTION_TYPE_MODIFY_FIELD;
		conf->modify.operation = RTE_FLOW_MODIFY_SET;
		conf->modify.dst.field = step->number;
		conf->modify.src.field = RTE_FLOW_FIELD_VALUE;
		memcpy(conf->modify.src.value, step->value, sizeof(conf->modify.src.value));
		conf->modify.width = step->width;
		return 0;
	case SHIM_STEP_DEC_TTL:
		action->type = RTE_FLOW_ACTION_TYPE_DEC_TTL;
		action->conf = NULL;
		return 0;
	case SHIM_STEP_VXLAN_DECAP:
		action->type = RTE_FLOW_ACTION_TYPE_VXLAN_DECAP;
		action->conf = NULL;
		return 0;
	case SHIM_STEP_RAW_DECAP:
		action->type = RTE_FLOW_ACTION_TYPE_RAW_DECAP;
		conf->raw_decap.data = (uint8_t *)(uintptr_t)step->data;
		conf->raw_decap.size = step->size;
		return 0;
	case SHIM_STEP_RAW_ENCAP:
		action->type = RTE_FLOW_ACTION_TYPE_RAW_ENCAP;
		conf->raw_encap.data = (uint8_t *)(uintptr_t)step->data;
		conf->raw_encap.size = step->size;
		return 0;
	default:
		return -EINVAL;
	}
}

static void said(const struct rte_flow_error *error, char *message)
{
	snprintf(message, SHIM_FLOW_MESSAGE, "%s", error->message != NULL ? error->message : "");
}

/* Not every driver sets rte_errno, and none may be taken for having said yes. */
static int failed(int status)
{
	if (status < 0)
		return status;
	return rte_errno > 0 ? -rte_errno : -EINVAL;
}

int shim_flow(uint16_t port, const struct shim_flow_rule *rule, struct rte_flow **flow, char *message)
{
	struct rte_flow_item items[SHIM_FLOW_ITEMS + 1];
	union item specs[SHIM_FLOW_ITEMS], lasts[SHIM_FLOW_ITEMS], masks[SHIM_FLOW_ITEMS];
	struct rte_flow_action actions[SHIM_FLOW_STEPS + 1];
	union action confs[SHIM_FLOW_STEPS];
	struct copy copies[SHIM_FLOW_STEPS];
	struct rte_flow_attr attr;
	struct rte_flow_error error;
	uint32_t i;
	int status;

	message[0] = 0;
	if (rule->item_count > SHIM_FLOW_ITEMS || rule->step_count > SHIM_FLOW_STEPS)
		return -E2BIG;
	memset(items, 0, sizeof(items));
	memset(actions, 0, sizeof(actions));
	memset(&attr, 0, sizeof(attr));
	memset(&error, 0, sizeof(error));
	for (i = 0; i < rule->item_count; i++) {
		const struct shim_flow_item *item = &rule->items[i];

		if (item->kind >= RTE_DIM(item_kinds))
			return -EINVAL;
		items[i].type = item_kinds[item->kind].type;
		if (item->kind == SHIM_ITEM_REPRESENTED_PORT) {
			memset(&specs[i], 0, sizeof(specs[i]));
			memset(&masks[i], 0, sizeof(masks[i]));
			specs[i].port.port_id = item->port;
			masks[i].port.port_id = UINT16_MAX;
		} else {
			fill(&specs[i], item->kind, item->spec, item->next == 1);
			fill(&masks[i], item->kind, item->mask, item->next <= 1);
			if (item->range) {
				fill(&lasts[i], item->kind, item->last, item->next == 1);
				items[i].last = &lasts[i];
			}
		}
		items[i].spec = &specs[i];
		items[i].mask = &masks[i];
	}
	items[i].type = RTE_FLOW_ITEM_TYPE_END;
	for (i = 0; i < rule->step_count; i++) {
		status = act(&rule->steps[i], &actions[i], &confs[i], &copies[i]);
		if (status != 0)
			return status;
	}
	actions[i].type = RTE_FLOW_ACTION_TYPE_END;
	attr.group = rule->group;
	attr.priority = rule->priority;
	attr.transfer = rule->transfer != 0;
	attr.ingress = rule->transfer == 0;
	if (flow == NULL) {
		status = rte_flow_validate(port, &attr, items, actions, &error);
		if (status == 0)
			return 0;
	} else {
		rte_errno = 0;
		*flow = rte_flow_create(port, &attr, items, actions, &error);
		if (*flow != NULL)
			return 0;
		status = 0;
	}
	said(&error, message);
	return failed(status);
}

int shim_flow_destroy(uint16_t port, struct rte_flow *flow, char *message)
{
	struct rte_flow_error error;
	int status;

	memset(&error, 0, sizeof(error));
	status = rte_flow_destroy(port, flow, &error);
	said(&error, message);
	return status;
}

int shim_flow_query(uint16_t port, struct rte_flow *flow, int ages, struct shim_flow_counters *counters, char *message)
{
	const struct rte_flow_action count = { .type = RTE_FLOW_ACTION_TYPE_COUNT };
	const struct rte_flow_action age = { .type = RTE_FLOW_ACTION_TYPE_AGE };
	struct rte_flow_query_count counted;
	struct rte_flow_query_age aged;
	struct rte_flow_error error;
	int status;

	memset(&counted, 0, sizeof(counted));
	memset(&aged, 0, sizeof(aged));
	memset(&error, 0, sizeof(error));
	counters->idle_seconds = UINT32_MAX;
	status = rte_flow_query(port, flow, &count, &counted, &error);
	counters->packets = counted.hits_set ? counted.hits : 0;
	counters->bytes = counted.bytes_set ? counted.bytes : 0;
	if (status == 0 && ages && rte_flow_query(port, flow, &age, &aged, &error) == 0 && aged.sec_since_last_hit_valid)
		counters->idle_seconds = aged.sec_since_last_hit;
	said(&error, message);
	return status;
}

int shim_flow_proxy(uint16_t port, uint16_t *proxy)
{
	struct rte_flow_error error;

	memset(&error, 0, sizeof(error));
	return rte_flow_pick_transfer_proxy(port, proxy, &error);
}

int shim_flow_isolate(uint16_t port)
{
	struct rte_flow_error error;

	memset(&error, 0, sizeof(error));
	return rte_flow_isolate(port, 1, &error);
}
