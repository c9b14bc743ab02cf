/* fopencookie() */
#define _GNU_SOURCE

#include "shim.h"

#include <errno.h>
#include <string.h>

#include <rte_cycles.h>
#include <rte_memory.h>

const char *shim_version(void)
{
	return rte_version();
}

/* Runs with EAL's lock of its memory map held. */
static void keep(enum rte_mem_event event, const void *start, size_t length, void *nothing)
{
	const char *at = start, *end = at + length;
	struct rte_memseg *piece;

	(void)nothing;
	if (event != RTE_MEM_EVENT_ALLOC)
		return;
	while (at < end && (piece = rte_mem_virt2memseg(at, NULL)) != NULL && piece->len != 0) {
		piece->flags |= RTE_MEMSEG_FLAG_DO_NOT_FREE;
		at = (const char *)piece->addr + piece->len;
	}
}

int shim_keep_memory(void)
{
	return rte_mem_event_callback_register("ringspan", keep, NULL) == 0 ? 0 : rte_errno;
}

int shim_errno(void)
{
	return rte_errno;
}

uint16_t shim_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t n)
{
	return rte_eth_rx_burst(port, queue, packets, n);
}

uint16_t shim_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t n)
{
	return rte_eth_tx_burst(port, queue, packets, n);
}

uint16_t shim_tx_prepare(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t n)
{
	return rte_eth_tx_prepare(port, queue, packets, n);
}

int shim_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **packets, unsigned int n)
{
	return rte_pktmbuf_alloc_bulk(pool, packets, n);
}

void shim_free_bulk(struct rte_mbuf **packets, unsigned int n)
{
	struct rte_mempool *pool;

	if (n == 0)
		return;
	pool = packets[0]->pool;
	for (unsigned int i = 0; i < n; i++) {
		const struct rte_mbuf *packet = packets[i];
		uint64_t special = packet->nb_segs ^ 1;

		special |= (uint64_t)(rte_mbuf_refcnt_read(packet) ^ 1);
		special |= packet->ol_flags & (RTE_MBUF_F_INDIRECT | RTE_MBUF_F_EXTERNAL);
		special |= (uintptr_t)packet->pool ^ (uintptr_t)pool;
		special |= (uintptr_t)packet->next;
		if (special != 0) {
			rte_pktmbuf_free_bulk(packets, n);
			return;
		}
	}
	rte_mempool_put_bulk(pool, (void **)packets, n);
}

int shim_get_bulk(struct rte_mempool *pool, struct rte_mbuf **buffers, unsigned int n)
{
#if !defined(RTE_LIBRTE_MEMPOOL_DEBUG) && !defined(RTE_LIBRTE_MEMPOOL_STATS)
	struct rte_mempool_cache *cache = rte_mempool_default_cache(pool, rte_lcore_id());

	/* DPDK takes them one by one, in the other order; and where it checks or counts them, by itself. */
	if (cache != NULL && n <= cache->len) {
		cache->len -= n;
		memcpy(buffers, &cache->objs[cache->len], n * sizeof(*buffers));
		return 0;
	}
#endif
	return rte_mempool_get_bulk(pool, (void **)buffers, n);
}

struct shim_layout {
	uint16_t room;
	int others;
};

static void look_at(struct rte_mempool *pool, void *expected, void *buffer, unsigned int index)
{
	struct shim_layout *layout = expected;
	const struct rte_mbuf *packet = buffer;

	(void)index;
	layout->others += packet->buf_addr != (const char *)packet + sizeof(*packet) || packet->buf_len < layout->room ||
			  packet->pool != pool || packet->next != NULL;
}

int shim_plain_buffers(struct rte_mempool *pool, uint16_t room)
{
	struct shim_layout layout = { .room = room };
	uint32_t seen = rte_mempool_obj_iter(pool, look_at, &layout);

	return seen == pool->size && layout.others == 0;
}

void shim_put_bulk(struct rte_mempool *pool, struct rte_mbuf **buffers, unsigned int n)
{
	rte_mempool_put_bulk(pool, (void **)buffers, n);
}

static void loan_back(void *start, void *loan)
{
	(void)start;
	__atomic_store_n(&((struct shim_loan *)loan)->away, 0, __ATOMIC_RELEASE);
}

void shim_lend(struct rte_mbuf *packet, void *start, uint16_t length, struct shim_loan *loan)
{
	__atomic_store_n(&loan->away, 1, __ATOMIC_RELAXED);
	loan->shared.free_cb = loan_back;
	loan->shared.fcb_opaque = loan;
	rte_mbuf_ext_refcnt_set(&loan->shared, 1);
	rte_pktmbuf_attach_extbuf(packet, start, (rte_iova_t)(uintptr_t)start, length, &loan->shared);
	packet->data_len = length;
	packet->pkt_len = length;
}

int shim_tx_done(uint16_t port, uint16_t queue)
{
	return rte_eth_tx_done_cleanup(port, queue, 0);
}

unsigned int shim_ring_take(struct rte_ring *ring, struct rte_mbuf **packets, unsigned int n)
{
	return rte_ring_dequeue_burst(ring, (void **)packets, n, NULL);
}

unsigned int shim_ring_give(struct rte_ring *ring, struct rte_mbuf **packets, unsigned int n)
{
	return rte_ring_enqueue_burst(ring, (void **)packets, n, NULL);
}

unsigned int shim_ring_room(const struct rte_ring *ring)
{
	return rte_ring_free_count(ring);
}

int shim_matching_ports(const char *devargs, uint16_t *ports, int room)
{
	struct rte_dev_iterator iterator;
	int found = 0;
	int status = rte_eth_iterator_init(&iterator, devargs);

	if (status != 0)
		return status < 0 ? status : -status;
	/* rte_eth_iterator_next() frees the iterator when it has no more. */
	for (uint16_t port = rte_eth_iterator_next(&iterator); port != RTE_MAX_ETHPORTS;
	     port = rte_eth_iterator_next(&iterator)) {
		if (found < room)
			ports[found] = port;
		found++;
	}
	return found;
}

size_t shim_mbuf_layout(size_t *offsets, size_t room)
{
	const size_t all[] = {
		sizeof(struct rte_mbuf),
		offsetof(struct rte_mbuf, buf_addr),
		offsetof(struct rte_mbuf, data_off),
		offsetof(struct rte_mbuf, refcnt),
		offsetof(struct rte_mbuf, nb_segs),
		offsetof(struct rte_mbuf, port),
		offsetof(struct rte_mbuf, ol_flags),
		offsetof(struct rte_mbuf, packet_type),
		offsetof(struct rte_mbuf, pkt_len),
		offsetof(struct rte_mbuf, data_len),
		offsetof(struct rte_mbuf, vlan_tci),
		offsetof(struct rte_mbuf, buf_len),
		offsetof(struct rte_mbuf, pool),
		offsetof(struct rte_mbuf, next),
		offsetof(struct rte_mbuf, tx_offload),
	};
	const size_t count = sizeof(all) / sizeof(all[0]);

	for (size_t i = 0; i < count && i < room; i++)
		offsets[i] = all[i];
	return count;
}

int shim_link(uint16_t port, int *up, uint32_t *speed)
{
	struct rte_eth_link link;
	int status;

	memset(&link, 0, sizeof(link));
	status = rte_eth_link_get_nowait(port, &link);
	*up = link.link_status == RTE_ETH_LINK_UP;
	*speed = link.link_speed;
	return status;
}

uint32_t shim_lcore_id(void)
{
	return rte_lcore_id();
}

static void (*log_write)(uint32_t level, const char *text, size_t length);

static ssize_t log_stream_write(void *cookie, const char *text, size_t length)
{
	(void)cookie;
	/* DPDK flushes after each message, so the message at hand is the one that is written. */
	log_write(rte_log_cur_msg_loglevel(), text, length);
	return length;
}

int shim_log_to(void (*write)(uint32_t level, const char *text, size_t length))
{
	const cookie_io_functions_t functions = { .write = log_stream_write };
	FILE *stream;

	log_write = write;
	stream = fopencookie(NULL, "w", functions);
	if (stream == NULL)
		return -errno;
	return rte_openlog_stream(stream);
}

#if RTE_VERSION >= RTE_VERSION_NUM(23, 11, 0, 0)
#define shim_member_add rte_eth_bond_member_add
#define shim_members_get rte_eth_bond_active_members_get
#define shim_member_info rte_eth_bond_8023ad_member_info
#else
#define shim_member_add rte_eth_bond_slave_add
#define shim_members_get rte_eth_bond_active_slaves_get
#define shim_member_info rte_eth_bond_8023ad_slave_info
#endif

int shim_bond_add(uint16_t bond, uint16_t member)
{
	return shim_member_add(bond, member);
}

int shim_bond_active(uint16_t bond, uint16_t *members, uint16_t room)
{
	return shim_members_get(bond, members, room);
}

int shim_bond_distributes(uint16_t bond, uint16_t member)
{
	struct shim_member_info info;

	return shim_member_info(bond, member, &info) == 0 && (info.actor_state & STATE_DISTRIBUTING) != 0;
}

int shim_poll_link(uint16_t port)
{
	struct rte_eth_dev_info info;
	int status = rte_eth_dev_info_get(port, &info);

	if (status != 0)
		return status;
	/* The flags are the port's own, behind a pointer to const. */
	if (info.dev_flags != NULL)
		*(uint32_t *)(uintptr_t)info.dev_flags &= ~(uint32_t)RTE_ETH_DEV_INTR_LSC;
	return 0;
}

int shim_meter_init(struct shim_meter *meter, uint64_t rate, uint64_t burst)
{
	struct rte_meter_srtcm_params params = { .cir = rate, .cbs = burst, .ebs = 0 };
	int status = rte_meter_srtcm_profile_config(&meter->profile, &params);

	return status != 0 ? status : rte_meter_srtcm_config(&meter->meter, &meter->profile);
}

int shim_meter_passes(struct shim_meter *meter, uint32_t bytes)
{
	return rte_meter_srtcm_color_blind_check(&meter->meter, &meter->profile, rte_get_tsc_cycles(), bytes) != RTE_COLOR_RED;
}
